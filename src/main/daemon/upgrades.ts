/** Requests that ask for another protocol on their connection: streams of sandboxes, as WebSockets. */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import { WebSocketServer, type WebSocket } from 'ws';
import { ForkdError } from '../../contract/errors.js';
import type { StreamRequest } from '../../contract/guest.js';
import { limits } from '../../contract/limits.js';
import type { Audit } from './audit.js';
import { asBuffer, Behind, bridge } from './bridge.js';
import type { Context } from './context.js';
import { refuseWith } from './listener.js';
import { bodyOfError } from './reply.js';
import type { Guards } from './server.js';

/** Time for the first message, which says what is asked for. */
const FIRST_MESSAGE_MS = 10_000;
/** So that what is between, a proxy say, does not take it for forgotten. */
const BEAT_MS = 30_000;
/** Silence after which the client's kernel is asked whether it is still there; ten seconds later it is not. Before the first beat, which it would have to confirm. */
const SILENCE_MS = 10_000;
const STREAM = /^\/v1\/sandboxes\/([^/]+)\/stream$/;
const ACTIONS = ['run', 'attach', 'connect', 'read_file', 'write_file', 'pack', 'unpack', 'watch'];

export class Upgrades {
  readonly #server = new WebSocketServer({
    noServer: true,
    perMessageDeflate: false,
    maxPayload: limits.bodyMaxBytes,
  });

  constructor(
    readonly context: Context,
    readonly guards: Guards,
    readonly audit: Audit,
  ) {}

  /** Listener of a server's `upgrade`. */
  readonly handle = (request: IncomingMessage, socket: Duplex, head: Buffer): void => {
    const began = performance.now();
    const path = (request.url ?? '/').split('?', 1)[0] ?? '/';
    const id = STREAM.exec(path)?.[1];
    const tellAudit = (status: number, outcome: string) =>
      this.audit.write({
        method: request.method ?? 'GET',
        path,
        status,
        latency_us: Math.round((performance.now() - began) * 1000),
        ua: request.headers['user-agent'] ?? '',
        remote: request.socket.remoteAddress ?? 'unix',
        request_id: crypto.randomUUID(),
        ...(id === undefined ? {} : { object: id }),
        outcome,
      });
    // A client that breaks off in the middle of it.
    socket.on('error', () => socket.destroy());
    try {
      const { tokens, connections, rate } = this.guards;
      connections.require(request.socket);
      if (request.socket.remoteAddress !== undefined) rate.require(request.socket.remoteAddress);
      tokens?.require(request.headers.authorization);
      requireOwnOrigin(request);
      if (id === undefined) throw new ForkdError('ROUTE_NOT_FOUND', { method: `upgrade of ${request.method}`, path });
      this.context.registry.get(id);
      request.socket.setKeepAlive(true, SILENCE_MS);
      this.#server.handleUpgrade(request, socket, head, (webSocket) => {
        void this.#serve(webSocket, id).then((failure) => tellAudit(101, failure?.code ?? 'ok'));
      });
    } catch (error) {
      const failure = ForkdError.from(error);
      refuseWith(failure, socket);
      tellAudit(failure.httpStatus, failure.code);
    }
  };

  async #serve(socket: WebSocket, id: string): Promise<ForkdError | undefined> {
    socket.on('error', () => socket.terminate());
    const stop = beat(socket);
    try {
      const { request, behind } = await firstMessage(socket);
      return await this.context.registry.active(id, ({ sandbox }) => bridge(socket, sandbox.stream(request), behind));
    } catch (error) {
      const failure = ForkdError.from(error);
      socket.send(JSON.stringify({ error: bodyOfError(failure) }));
      socket.close(1008);
      return failure;
    } finally {
      stop();
    }
  }

  /** The server is about to end: streams end with it. */
  close(): void {
    for (const socket of this.#server.clients) socket.close(1001);
    this.#server.close();
  }
}

/** A browser lets any page open a WebSocket to any address: only pages of this daemon's own may. Programs send no origin. */
const requireOwnOrigin = ({ headers: { origin, host } }: IncomingMessage): void => {
  if (origin === undefined) return;
  if (!URL.canParse(origin) || new URL(origin).host !== host) throw new ForkdError('ORIGIN_REFUSED', { origin });
};

/** Resolves with what is asked for, and with the messages behind it: they come in the same moment when they came in one packet. */
const firstMessage = (socket: WebSocket): Promise<{ request: StreamRequest; behind: Behind }> =>
  new Promise((resolve, reject) => {
    const refuse = (reason: string) => reject(new ForkdError('REQUEST_REFUSED', { reason }));
    const late = setTimeout(() => refuse('the first message did not come in time'), FIRST_MESSAGE_MS);
    socket.once('close', () => {
      clearTimeout(late);
      refuse('the client has gone');
    });
    socket.once('message', (data, isBinary) => {
      clearTimeout(late);
      if (isBinary) return refuse('the first message must be text');
      try {
        const request = JSON.parse(asBuffer(data).toString('utf8')) as StreamRequest;
        if (!ACTIONS.includes(request?.action)) return refuse(`action must be one of ${ACTIONS.join(', ')}`);
        // How much is held here is up to the daemon.
        resolve({ request: { ...request, window: limits.streamWindowBytes }, behind: new Behind(socket) });
      } catch {
        refuse('the first message is not JSON');
      }
    });
  });

/** Nobody waits for the answer: a client that is slow to read hears of it late. */
const beat = (socket: WebSocket): (() => void) => {
  const timer = setInterval(() => socket.ping(), BEAT_MS).unref();
  return () => clearInterval(timer);
};
