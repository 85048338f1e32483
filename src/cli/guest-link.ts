/** How commands reach streams, files and ports of a sandbox: over its own socket when it is this user's, else through the daemon. */
import { connect } from 'node:net';
import type { Controller } from '../client/index.js';
import { ForkdError } from '../contract/errors.js';
import type { GuestRequest, PlainReply, StreamRequest } from '../contract/guest.js';
import { isSandboxId, parseTarget } from '../contract/names.js';
import { AgentClient } from '../main/agent/client.js';
import { prefaceOf, requireSomebody, type UnixAddress } from '../main/agent/line.js';
import { sandboxesDir } from '../main/paths.js';
import { lookUp, type Published } from '../main/sandbox/registry.js';
import { askDaemon, notThere } from './ask-daemon.js';
import type { Session } from './follow.js';
import type { Options } from './options.js';

/** Where a sandbox of this user is offered, or undefined. A daemon that was named on the command line is the one that is asked. */
export const localSocket = (options: Options, target: string): UnixAddress | undefined => {
  const parsed = parseTarget(target);
  if (parsed.kind === 'unix') return parsed;
  if (parsed.kind === 'tcp')
    throw options.wrong('TARGET', 'needs the id of a sandbox, or unix:PATH: a TCP port of the agent has no streams');
  if (options.string('daemon-url') !== undefined) return undefined;
  try {
    return publishedAt(lookUp(sandboxesDir(), parsed.id));
  } catch (error) {
    if (error instanceof ForkdError && error.code === 'SANDBOX_NOT_FOUND') return undefined;
    throw error;
  }
};

export const publishedAt = ({ id, socket }: Published): UnixAddress => ({ path: socket, sandbox: id });

/** A client of the agent behind a socket. The caller closes it. `onData` hears the first of what comes. */
export const agentAt = (
  address: UnixAddress,
  name: string,
  onData: (data: Buffer) => void = () => undefined,
): AgentClient => {
  const socket = connect(address.path);
  socket.once('data', onData);
  socket.write(prefaceOf(address));
  return new AgentClient(socket, name);
};

/** The sandbox that a command is about: its first argument, or --target. */
export const targetOf = (options: Options): string => {
  const [id, ...more] = options.positional;
  const named = options.string('target');
  if (more.length > 0) throw options.wrong('ID', 'is given more than once');
  if (id !== undefined && named !== undefined) throw options.wrong('--target', 'does not go with ID');
  const target = id ?? named;
  if (target === undefined) throw options.wrong('ID', 'is required');
  if (id !== undefined && !isSandboxId(id) && !id.startsWith('unix:'))
    throw options.wrong('ID', `'${id}' is not the id of a sandbox`);
  return target;
};

/** What commands do with a guest. */
export interface GuestLink {
  open(request: StreamRequest): Session;
  /** Throws what the guest could not do. */
  ask(request: GuestRequest): Promise<PlainReply>;
  /** Settles when the guest cannot be reached any more, as far as that is noticed. */
  readonly gone: Promise<void>;
}

/** Gives a command the sandbox that its options name. Throws SANDBOX_NOT_FOUND, GUEST_OUTDATED, AGENT_ERROR, AGENT_UNREACHABLE and what `askDaemon` throws. */
export const withLink = async (
  options: Options,
  use: (link: GuestLink) => Promise<number>,
  target = targetOf(options),
): Promise<number> => {
  const address = localSocket(options, target);
  if (address === undefined) return throughDaemon(options, use, target);
  let first: Buffer = Buffer.alloc(0);
  const agent = agentAt(address, target, (data) => {
    first = data;
  });
  try {
    return await use({
      open: (request) => agent.open(request),
      ask: (request) => agent.ask(request, ASK_MS),
      gone: agent.closed,
    });
  } catch (error) {
    requireSomebody(first, address);
    throw error;
  } finally {
    agent.close();
  }
};

const ASK_MS = 60_000;

const throughDaemon = async (
  options: Options,
  use: (link: GuestLink) => Promise<number>,
  id: string,
): Promise<number> => {
  const link = (controller: Controller): GuestLink => ({
    open: (request) => controller.openStream(id, request),
    ask: (request) => askOver(controller, id, request),
    gone: new Promise(() => undefined),
  });
  try {
    return await askDaemon(options, (controller) => use(link(controller)), ASK_MS);
  } catch (error) {
    if (notThere(error) && options.string('daemon-url') === undefined)
      throw new ForkdError('SANDBOX_NOT_FOUND', { id }, error);
    throw error;
  }
};

const askOver = async (controller: Controller, id: string, request: GuestRequest): Promise<PlainReply> => {
  const done = { exit_code: 0 };
  if (request.action === 'runs') return { ...done, runs: await controller.listRuns(id) };
  if (request.action === 'run') {
    const { args, timeout, action, detach, ...more } = request;
    return {
      ...done,
      ...(await controller.startRun(id, args, { ...more, ...(timeout == null ? {} : { timeoutSecs: timeout }) })),
    };
  }
  if (request.action === 'stat') return { ...done, entry: await controller.statFile(id, request.path) };
  if (request.action === 'list') return { ...done, entries: await controller.listFiles(id, request.path) };
  throw new ForkdError('INTERNAL', { reason: `${request.action} over the daemon` });
};
