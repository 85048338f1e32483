/** The daemon: an engine that stays, behind HTTP on a TCP port and on a Unix socket. */
import { chmodSync, mkdirSync, rmSync } from 'node:fs';
import type { IncomingMessage, ServerResponse } from 'node:http';
import { Server as TlsServer } from 'node:https';
import { type AddressInfo, connect, type ListenOptions } from 'node:net';
import { dirname } from 'node:path';
import fastify, {
  type FastifyBaseLogger,
  type FastifyInstance,
  type FastifyReply,
  type FastifyRequest,
  LogController,
} from 'fastify';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { native } from '../../native/binding.js';
import { Engine } from '../engine.js';
import { Audit, type AuditLine } from './audit.js';
import { Tokens } from './auth.js';
import { isLoopback, parseBind, requireSafe } from './bind.js';
import { Connections } from './connections.js';
import type { Context } from './context.js';
import { Denials } from './denials.js';
import { closeEventStreams } from './event-stream.js';
import { Events } from './events.js';
import { Journal } from './journal.js';
import { endStalled, type Listener, makeServer, PATIENCE } from './listener.js';
import { makeLog } from './log.js';
import { Metrics } from './metrics.js';
import { describeApi } from './openapi.js';
import { Rate } from './rate.js';
import { Registry } from './registry.js';
import { pathOf, readBodies, tellFailures, tellFramework } from './reply.js';
import { previewRoutes } from './preview.js';
import { branchRoutes } from './routes/branch.js';
import { branchTreeRoutes } from './routes/branches.js';
import { eventRoutes } from './routes/events.js';
import { fileRoutes } from './routes/files.js';
import { sandboxRoutes } from './routes/sandboxes.js';
import { serviceRoutes } from './routes/service.js';
import { snapshotRoutes } from './routes/snapshots.js';
import { workspaceRoutes } from './routes/workspaces.js';
import { Slots } from './slots.js';
import { Snapshots } from './snapshots.js';
import { Survivors, tieProblem } from './survivors.js';
import { certProblem, readTls, type TlsFiles, type TlsPair } from './tls.js';
import { tidy } from './tidy.js';
import { Upgrades } from './upgrades.js';
import { Workspaces } from './workspaces.js';

export interface DaemonOptions {
  bind: string;
  socketPath: string;
  auditLog: string;
  /** What survives its end. */
  statePath: string;
  branchConcurrency: number;
  /** Requests a second from one address on the port; 0 for any number. */
  rateLimit: number;
  /** Children of each template that are forked ahead of requests. */
  spares: number;
  version: string;
  /** All of a tag's memory is loaded and checked before anything runs from it. */
  eager?: boolean;
  /** Nothing is forked where a part of the jail or of the limits cannot be enforced. */
  strict?: boolean;
  /** When it is told to end, sandboxes run on for the next daemon to take back. */
  leaveRunning?: boolean;
  tokenFile?: string;
  /** TLS on the port; the socket is for this host alone and needs none. */
  tls?: TlsFiles;
  snapshotRoot?: string;
  /** Of pino: trace, debug, info, warn, error, fatal, silent. */
  logLevel: string;
  onProblem: (reason: string) => void;
}

/** Time for requests under way when the daemon is told to end; the reference's. */
const DRAIN_MS = 30_000;

export class Daemon {
  readonly #tcp: Listener;
  readonly #local: Listener;
  #draining = false;

  private constructor(
    readonly engine: Engine,
    readonly audit: Audit,
    readonly app: FastifyInstance,
    readonly journal: Journal,
    readonly survivors: Survivors,
    readonly options: DaemonOptions,
    readonly upgrades: Upgrades,
    tls: TlsPair | undefined,
  ) {
    const route = (request: IncomingMessage, response: ServerResponse) => app.routing(request, response);
    this.#tcp = makeServer(route, PATIENCE, tls);
    this.#local = makeServer(route);
    for (const server of [this.#tcp, this.#local]) server.on('upgrade', upgrades.handle);
    // A connection that is kept would hold up the end.
    app.addHook('onSend', async (_, reply) => {
      if (this.#draining) reply.header('connection', 'close');
    });
  }

  /** Throws DAEMON_REFUSED. */
  static async start(options: DaemonOptions): Promise<Daemon> {
    const { onProblem, tokenFile, snapshotRoot, branchConcurrency, spares } = options;
    const bind = parseBind(options.bind);
    const tokens = tokenFile === undefined ? undefined : new Tokens(tokenFile, onProblem);
    requireSafe(bind, tokens !== undefined);
    const tls = options.tls && readTls(options.tls);
    const doubt = tls
      ? certProblem(tls)
      : isLoopback(bind)
        ? undefined
        : 'without TLS the token can be read on its way';
    if (doubt !== undefined) onProblem(doubt);
    if (branchConcurrency < 1) throw new ForkdError('DAEMON_REFUSED', { reason: '--branch-concurrency is 0' });
    const audit = new Audit(options.auditLog, onProblem);
    const problem = tieProblem();
    if (problem !== undefined) onProblem(`sandboxes will end with this daemon: ${problem}`);
    const engine = new Engine({
      resident: true,
      spares,
      eager: options.eager ?? false,
      strict: options.strict ?? false,
      onWeaker: onProblem,
      tied: problem === undefined,
      agentSocket: `${options.statePath}.agents`,
      ...(snapshotRoot === undefined ? {} : { snapshotRoot }),
    });
    const journal = new Journal(options.statePath);
    const connections = new Connections();
    const guards = { tokens, connections, rate: new Rate(options.rateLimit) };
    const { app, workspaces, context } = build(engine, audit, guards, journal, options);
    const { survivors } = context;
    const upgrades = new Upgrades(context, guards, audit);
    const daemon = new Daemon(engine, audit, app, journal, survivors, options, upgrades, tls);
    connections.watch(daemon.#tcp);
    try {
      await app.ready();
      await engine.publisher.open();
      for (const told of await survivors.takeOver()) app.log.warn(told);
      for (const told of await workspaces.recover()) app.log.warn(told);
      for (const told of await tidy(engine.store.root)) app.log.warn(told);
      await listening(daemon.#tcp, bind);
      await daemon.#listenLocally();
    } catch (error) {
      // Sandboxes that were there before are none of this failure's business.
      await daemon.close({ leave: true });
      throw error instanceof ForkdError ? error : new ForkdError('DAEMON_REFUSED', { reason: reasonOf(error) }, error);
    }
    return daemon;
  }

  get port(): number {
    return (this.#tcp.address() as AddressInfo).port;
  }

  /** Opens the audit log anew, which has been moved away, and takes a certificate that has been renewed. A bad one changes nothing. */
  reopen(): void {
    this.audit.reopen();
    const { tls: files, onProblem } = this.options;
    if (!files || !(this.#tcp instanceof TlsServer)) return;
    try {
      const tls = readTls(files);
      this.#tcp.setSecureContext({ ...tls, minVersion: 'TLSv1.2' });
      const doubt = certProblem(tls);
      if (doubt !== undefined) onProblem(doubt);
    } catch (error) {
      onProblem(`the old certificate stays: ${reasonOf(error)}`);
    }
  }

  async #listenLocally(): Promise<void> {
    const { socketPath } = this.options;
    mkdirSync(dirname(socketPath), { recursive: true, mode: 0o700 });
    if (await answers(socketPath))
      throw new ForkdError('DAEMON_REFUSED', { reason: `another daemon listens on ${socketPath}` });
    rmSync(socketPath, { force: true });
    // The socket is born with the mode that it keeps: between bind and chmod nobody else may connect.
    const mask = process.umask(0o177);
    try {
      await listening(this.#local, { path: socketPath });
      chmodSync(socketPath, 0o600);
    } finally {
      process.umask(mask);
    }
  }

  /** Takes no new requests, gives those under way their time, then ends every sandbox; with `leave` they run on for the next daemon. */
  async close({ leave = this.options.leaveRunning ?? false } = {}): Promise<void> {
    this.#draining = true;
    const servers = [this.#tcp, this.#local];
    const late = setTimeout(() => {
      for (const server of servers) server.closeAllConnections();
    }, DRAIN_MS);
    const all = Promise.all(servers.map(ended));
    closeEventStreams(this.app);
    this.upgrades.close();
    await all;
    clearTimeout(late);
    await this.app.close();
    if (!leave) await this.survivors.forgetAll();
    await this.engine.close({ leave });
    this.survivors.close();
    await this.journal.close();
    this.audit.close();
  }
}

const TRIM_MS = 60_000;

/** A request id that a client may give itself; any other is replaced. */
const REQUEST_ID = /^[A-Za-z0-9_.:-]{1,64}$/;

export interface Guards {
  tokens: Tokens | undefined;
  connections: Connections;
  rate: Rate;
}

const build = (engine: Engine, audit: Audit, guards: Guards, journal: Journal, options: DaemonOptions) => {
  const app = fastify({
    bodyLimit: limits.bodyMaxBytes,
    // What is too long is no tag and no id, and gets the answer of any other that is none.
    routerOptions: { maxParamLength: limits.urlMaxChars },
    frameworkErrors: (error, _, reply) => tellFramework(error, reply),
    genReqId: ({ headers: { 'x-request-id': given } }) =>
      typeof given === 'string' && REQUEST_ID.test(given) ? given : crypto.randomUUID(),
    loggerInstance: makeLog(options.logLevel) as FastifyBaseLogger,
    logController: new LogController({ requestIdLogLabel: 'request_id', disableRequestLogging: true }),
    // Types are held to as they are written: "1" is not 1.
    ajv: { customOptions: { coerceTypes: false, removeAdditional: false, allowUnionTypes: true } },
  });
  const context = makeContext(engine, journal, options, app.log);
  readBodies(app);
  guard(app, guards);
  endStalled(app);
  app.addHook('onSend', async (request, reply) => audit.write(auditLine(request, reply)));
  app.addHook('onResponse', async (request, reply) => {
    const { statusCode: status, elapsedTime } = reply;
    // The pattern and not the path: ids would make a series each.
    const labels = { method: request.method, route: request.routeOptions.url ?? 'none', status };
    context.metrics.request.observe(labels, elapsedTime / 1000);
    request.log.debug({ method: request.method, path: pathOf(request), status, ms: elapsedTime }, 'request');
  });
  tellFailures(app);
  const document = describeApi(app, context.version);
  serviceRoutes(app, context, document);
  snapshotRoutes(app, context);
  sandboxRoutes(app, context);
  fileRoutes(app, context);
  previewRoutes(app, context);
  branchRoutes(app, context);
  eventRoutes(app, context);
  const workspaces = new Workspaces(context);
  workspaceRoutes(app, context, workspaces);
  branchTreeRoutes(app, context, workspaces);
  // Requests of all sizes leave the C heap in pieces; in a process that runs for months what is free goes back now and then.
  const trim = setInterval(() => native.heapTrim(), TRIM_MS).unref();
  app.addHook('onClose', async () => clearInterval(trim));
  const denials = new Denials(context.registry, audit, app.log);
  app.addHook('onClose', async () => {
    denials.close();
    context.registry.close();
  });
  return { app, workspaces, context };
};

/** What every request has to pass, the cheapest first: those that are refused for their number should cost little. */
const guard = (app: FastifyInstance, { tokens, connections, rate }: Guards): void => {
  app.addHook('onRequest', async (request, reply) => {
    reply.header('x-request-id', request.id);
    const { socket } = request.raw;
    try {
      connections.require(socket);
      // The socket is its owner's own, and has no address.
      if (socket.remoteAddress !== undefined) rate.require(socket.remoteAddress);
    } catch (error) {
      const { code, details } = ForkdError.from(error);
      if (code === 'RATE_LIMITED') reply.header('retry-after', String(details['wait']));
      else reply.header('connection', 'close');
      throw error;
    }
    if (!['/healthz', '/healthz/'].includes(pathOf(request))) tokens?.require(request.headers.authorization);
  });
};

const makeContext = (engine: Engine, journal: Journal, options: DaemonOptions, log: FastifyBaseLogger): Context => {
  const { version, branchConcurrency } = options;
  const events = new Events();
  const snapshots = new Snapshots(engine.store, events, journal);
  const slots = new Slots(branchConcurrency);
  const registry = new Registry(events, (sandbox) => sandbox.kill());
  const survivors = new Survivors(engine, registry, journal, log);
  const metrics = new Metrics({ engine, registry, snapshots, slots, events, version });
  return { engine, registry, snapshots, survivors, slots, events, journal, metrics, version, log };
};

const auditLine = (request: FastifyRequest, reply: FastifyReply): AuditLine => {
  const { id, tag, name } = request.params as { id?: string; tag?: string; name?: string };
  const object = id ?? tag ?? name ?? request.object;
  return {
    method: request.method,
    path: pathOf(request),
    status: reply.statusCode,
    latency_us: Math.round(reply.elapsedTime * 1000),
    ua: request.headers['user-agent'] ?? '',
    remote: reply.raw.socket?.remoteAddress ?? 'unix',
    request_id: request.id,
    ...(object === undefined ? {} : { object }),
    outcome: reply.failure ?? 'ok',
  };
};

const listening = (server: Listener, where: ListenOptions): Promise<void> =>
  new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(where, () => {
      server.off('error', reject);
      resolve();
    });
  });

/** Takes no more connections, and waits for those that are busy. */
const ended = (server: Listener): Promise<void> =>
  new Promise((resolve) => {
    if (!server.listening) return resolve();
    server.close(() => resolve());
    server.closeIdleConnections();
  });

/** Whether someone listens there. */
const answers = (path: string): Promise<boolean> =>
  new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', () => resolve(false));
  });
