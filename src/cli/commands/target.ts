/** What `exec`, `eval` and `ping` share: finding the agent that --target names, and talking to it. */
import { closeSync, openSync } from 'node:fs';
import { isIPv6, Socket } from 'node:net';
import { lookup } from 'node:dns/promises';
import { AGENT_TCP_PORT, type GuestReply, type GuestRequest } from '../../contract/guest.js';
import { ForkdError, errnoOf, reasonOf } from '../../contract/errors.js';
import { parseTarget, type Target } from '../../contract/names.js';
import { type Address, callLine, type LineTimeouts } from '../../main/agent/line.js';
import { sandboxesDir } from '../../main/paths.js';
import { lookUp } from '../../main/sandbox/registry.js';
import { native } from '../../native/binding.js';
import type { Controller } from '../../client/index.js';
import { askDaemon, daemonOptions, notThere } from '../ask-daemon.js';
import { publishedAt } from '../guest-link.js';
import type { Options } from '../options.js';

const DEFAULT_TARGET = `10.42.0.2:${AGENT_TCP_PORT}`;

export const targetOptions: [string, string][] = [
  ['--target <TARGET>', `host:port, unix:PATH, unix:PATH#ID or a sandbox id (default ${DEFAULT_TARGET})`],
  ['--child <NETNS>', 'Connect from inside this network namespace (root)'],
  ...daemonOptions,
];

/**
 * Calls the agent that the options name: a sandbox of this user over its own socket, any other id through the daemon.
 * Throws TARGET_INVALID, SANDBOX_NOT_FOUND, NETNS_MISSING, and what the line client and `askDaemon` throw.
 */
export const callTarget = async (
  options: Options,
  request: GuestRequest,
  timeouts: LineTimeouts,
): Promise<GuestReply> => {
  const name = options.string('target') ?? DEFAULT_TARGET;
  const target = parseTarget(name);
  const child = options.string('child');
  if (child === undefined && target.kind === 'sandbox' && !isHere(target.id, options))
    return throughDaemon(options, target.id, request, timeouts.replyMs);
  const address =
    child === undefined ? addressOf(target) : await inNamespace(target, child, name, timeouts.connectMs, options);
  return callLine(address, child === undefined ? name : `${name} in ${child}`, request, timeouts);
};

/** A daemon that was named on the command line is the one that is asked. */
const isHere = (id: string, options: Options): boolean => {
  if (options.string('daemon-url') !== undefined) return false;
  try {
    lookUp(sandboxesDir(), id);
    return true;
  } catch {
    return false;
  }
};

const throughDaemon = async (
  options: Options,
  id: string,
  request: GuestRequest,
  timeoutMs: number,
): Promise<GuestReply> => {
  const ask = async (controller: Controller): Promise<unknown> => {
    if (request.action === 'exec')
      return controller.execCommand(
        id,
        request.args,
        request.timeout === undefined ? {} : { timeoutSecs: request.timeout },
      );
    if (request.action === 'eval') return controller.evalCode(id, request.code);
    return controller.pingSandbox(id);
  };
  try {
    return asTheAgentTells((await askDaemon(options, ask, timeoutMs + 5000)) as Record<string, unknown>);
  } catch (error) {
    if (notThere(error) && options.string('daemon-url') === undefined)
      throw new ForkdError('SANDBOX_NOT_FOUND', { id }, error);
    throw error;
  }
};

/** The daemon's replies always have `error` and `result`, and repeat an exec's `error` in `stderr`. */
const asTheAgentTells = (reply: Record<string, unknown>): GuestReply => {
  const told = Object.fromEntries(Object.entries(reply).filter(([, value]) => value !== null));
  const { stderr, error } = told;
  if (typeof stderr === 'string' && typeof error === 'string' && stderr.endsWith(`${error}\n`))
    told['stderr'] = stderr.slice(0, -error.length - 1);
  return told as unknown as GuestReply;
};

const addressOf = (target: Target): Address => {
  if (target.kind === 'tcp') return { host: target.host, port: target.port };
  return target.kind === 'unix' ? target : publishedAt(lookUp(sandboxesDir(), target.id));
};

const inNamespace = async (
  target: Target,
  netns: string,
  name: string,
  timeoutMs: number,
  options: Options,
): Promise<Address> => {
  if (target.kind !== 'tcp') throw options.wrong('--child', 'needs a host:port target');
  if (!/^[\w.-]+$/.test(netns) || netns.startsWith('.'))
    throw options.wrong('--child', `'${netns}' is not the name of a namespace`);
  const ns = openNamespace(netns);
  let fd = -1;
  try {
    const { address } = await lookup(target.host);
    fd = native.tcpSocketIn(ns, isIPv6(address) ? 6 : 4);
    native.tcpConnect(fd, address, target.port, timeoutMs);
    return { socket: new Socket({ fd, readable: true, writable: true, allowHalfOpen: true }) };
  } catch (error) {
    if (fd >= 0) native.fdClose(fd);
    if (errnoOf(error) === 'EPERM')
      throw new ForkdError('PERMISSION_DENIED', { reason: `entering ${netns} needs root` }, error);
    throw new ForkdError('AGENT_UNREACHABLE', { target: `${name} in ${netns}`, reason: reasonOf(error) }, error);
  } finally {
    closeSync(ns);
  }
};

const openNamespace = (netns: string): number => {
  try {
    return openSync(`/var/run/netns/${netns}`, 'r');
  } catch (error) {
    throw new ForkdError('NETNS_MISSING', { netns }, error);
  }
};
