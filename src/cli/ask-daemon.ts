/** How commands reach the daemon: where it is, what its refusals become, and when the disk does as well. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Controller } from '../client/index.js';
import { errnoOf, ForkdError, reasonOf } from '../contract/errors.js';
import { dataDir } from '../main/paths.js';
import type { Options } from './options.js';

const DEFAULT_URL = 'http://127.0.0.1:8889';

/** Codes of a connection that was never made: nothing has been asked for yet. */
const NOT_CONNECTED = ['ECONNREFUSED', 'ENOENT', 'ENOTFOUND', 'EHOSTUNREACH', 'ENETUNREACH', 'EACCES', 'EAI_AGAIN'];

export const daemonOptions: [string, string][] = [
  [
    '--daemon-url <URL>',
    `http://HOST:PORT, https://HOST:PORT or unix:PATH (env FORKD_URL; default: its socket, else ${DEFAULT_URL})`,
  ],
  ['--daemon-token <TOKEN>', 'Its bearer token (env FORKD_TOKEN)'],
  ['--daemon-ca <FILE>', 'Certificates, PEM, that its own must be signed by or be one of, for https (env FORKD_CA)'],
];

/** The daemon that was named, or that of this data directory; undefined when neither is there. */
export const nearDaemonUrl = (options: Options): string | undefined => {
  const named = options.string('daemon-url', { env: 'FORKD_URL' });
  if (named !== undefined) return named;
  const socket = process.env['FORKD_SOCKET'] || join(dataDir(), 'controller.sock');
  return existsSync(socket) ? `unix:${socket}` : undefined;
};

/** The certificates to believe, when there is something to believe. Throws INPUT_FILE_INVALID. */
export const daemonCa = (options: Options, url: string): string | undefined => {
  const path = options.string('daemon-ca', { env: 'FORKD_CA' });
  return path === undefined || !url.startsWith('https:') ? undefined : options.lines(path).join('\n');
};

/**
 * A client of the daemon that the options name, not connected yet. Throws ARGUMENT_INVALID for an address that is none.
 * The client is loaded only here: an HTTP library takes longer to load than most commands take to run.
 */
export const controllerOf = async (options: Options, timeoutMs: number): Promise<Controller> => {
  const { Controller } = await import('../client/index.js');
  const baseUrl = nearDaemonUrl(options) ?? DEFAULT_URL;
  const token = options.string('daemon-token', { env: 'FORKD_TOKEN' })?.trim();
  const ca = daemonCa(options, baseUrl);
  try {
    return new Controller({
      baseUrl,
      timeoutMs,
      ...(token === undefined ? {} : { token }),
      ...(ca === undefined ? {} : { ca }),
    });
  } catch (error) {
    throw options.wrong('--daemon-url', `'${baseUrl}' is not a URL: ${reasonOf(error)}`);
  }
};

/** Asks the daemon. Throws DAEMON_UNREACHABLE, DAEMON_ANSWERED and what `controllerOf` throws. */
export const askDaemon = async <T>(
  options: Options,
  ask: (controller: Controller) => Promise<T>,
  timeoutMs = 60_000,
): Promise<T> => {
  const { ControllerError } = await import('../client/index.js');
  const controller = await controllerOf(options, timeoutMs);
  try {
    return await ask(controller);
  } catch (error) {
    if (error instanceof ControllerError) {
      const { status, message, hint = 'See docs/reference/daemon.md.' } = error;
      throw new ForkdError('DAEMON_ANSWERED', { status, reason: message.replace(/^HTTP \d+: /, ''), hint }, error);
    }
    if (error instanceof ForkdError) throw error;
    throw new ForkdError('DAEMON_UNREACHABLE', { url: controller.baseUrl, reason: reasonOf(error) }, error);
  }
};

/** Whether the daemon told with this status that it could not. */
export const answered = (error: unknown, status: number): boolean =>
  error instanceof ForkdError && error.code === 'DAEMON_ANSWERED' && error.details['status'] === status;

/** Whether no daemon was there to ask. A connection that broke later is another matter: it may have done it. */
export const notThere = (error: unknown): boolean =>
  error instanceof ForkdError &&
  error.code === 'DAEMON_UNREACHABLE' &&
  NOT_CONNECTED.includes(errnoOf(error.cause) ?? '');

/** Through the daemon when there is one; from the disk when there is none, or when it does not know the thing. */
export const daemonOrDisk = async <T>(
  options: Options,
  viaDaemon: (controller: Controller) => Promise<T>,
  fromDisk: () => T | Promise<T>,
  timeoutMs?: number,
): Promise<{ value: T; source: 'daemon' | 'disk' }> => {
  if (nearDaemonUrl(options) !== undefined) {
    try {
      return { value: await askDaemon(options, viaDaemon, timeoutMs), source: 'daemon' };
    } catch (error) {
      if (!notThere(error) && !answered(error, 404)) throw error;
    }
  }
  return { value: await fromDisk(), source: 'disk' };
};
