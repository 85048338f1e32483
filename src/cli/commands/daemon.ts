import { join, resolve } from 'node:path';
import { limits } from '../../contract/limits.js';
import { dataDir, snapshotsDir } from '../../main/paths.js';
import { VERSION } from '../../main/version.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { step, warn } from '../progress.js';

export const daemon: Command = {
  name: 'daemon',
  description:
    'Serve the REST API (also `forkd-controller serve`). What it has acknowledged survives kill -9, and the next one takes it back',
  options: [
    ['--bind <IP:PORT>', 'Where to listen (env FORKD_BIND; default 127.0.0.1:8889)'],
    [
      '--socket <PATH>',
      'Unix socket beside it (env FORKD_SOCKET; default controller.sock in the data directory, or .controller.sock in another --snapshot-root)',
    ],
    ['--snapshot-root <DIR>', 'Where the tags are (env FORKD_SNAPSHOT_ROOT)'],
    ['--state <FILE>', 'What survives its end (env FORKD_STATE; default state.json in the data directory)'],
    [
      '--leave-running',
      'At SIGTERM sandboxes run on, for the next one to take back (env FORKD_LEAVE_RUNNING=1); without it they end',
    ],
    ['--audit-log <FILE>', 'One JSON line for each request (env FORKD_AUDIT_LOG; default /var/log/forkd/audit.log)'],
    ['--token-file <FILE>', 'Require this bearer token (env FORKD_TOKEN_FILE); read again when it changes'],
    ['--tls-cert <FILE>', 'Serve HTTPS on the port: certificate chain, PEM (env FORKD_TLS_CERT); with --tls-key'],
    ['--tls-key <FILE>', 'Its private key, PEM (env FORKD_TLS_KEY); SIGHUP reads both again'],
    [
      '--log-level <LEVEL>',
      'trace, debug, info, warn, error or silent: JSON lines on stderr (env FORKD_LOG, or RUST_LOG if it is one of them; default info)',
    ],
    ['--eager', 'Load and check all of the memory of a tag first, instead of each part when it is touched'],
    ['--strict', 'Make no sandbox where a part of the jail or of the limits cannot be enforced (`forkd doctor`)'],
    ['--branch-concurrency <N>', 'Branches under way at once (env FORKD_BRANCH_CONCURRENCY; default 4)'],
    [
      '--rate-limit <N>',
      'Requests a second from one address on the port, 0 for any number (env FORKD_RATE_LIMIT; default 5000)',
    ],
    [
      '--spares <N>',
      'Children forked ahead for each tag in use, about 5 MiB each: a spawn of up to N is faster (env FORKD_SPARES; default 4)',
    ],
    ['--prewarm-scratch-dir <DIR>', 'Accepted for compatibility: nothing is written to warm a child'],
  ],
  examples: [
    'forkd-controller serve',
    'forkd-controller serve --bind 0.0.0.0:8889 --token-file /etc/forkd/token --tls-cert cert.pem --tls-key key.pem',
  ],
  run: async (options) => {
    // Only here: an HTTP server takes longer to load than most commands take to run.
    const { Daemon } = await import('../../main/daemon/server.js');
    const { Supervisor } = await import('../../main/daemon/supervisor.js');
    const { tlsFiles } = await import('../../main/daemon/tls.js');
    const tls = tlsFiles(
      options.string('tls-cert', { env: 'FORKD_TLS_CERT' }),
      options.string('tls-key', { env: 'FORKD_TLS_KEY' }),
    );
    const supervisor = new Supervisor(process.env, warn);
    const tokenFile = options.string('token-file', { env: 'FORKD_TOKEN_FILE' });
    const snapshotRoot = options.string('snapshot-root', { env: 'FORKD_SNAPSHOT_ROOT' });
    const served = await Daemon.start({
      bind: options.string('bind', { env: 'FORKD_BIND' }) ?? '127.0.0.1:8889',
      socketPath: resolve(options.string('socket', { env: 'FORKD_SOCKET' }) ?? beside(snapshotRoot, 'controller.sock')),
      auditLog: options.string('audit-log', { env: 'FORKD_AUDIT_LOG' }) ?? '/var/log/forkd/audit.log',
      branchConcurrency: wholeNumber(options, 'branch-concurrency', 'FORKD_BRANCH_CONCURRENCY', '4'),
      rateLimit: wholeNumber(options, 'rate-limit', 'FORKD_RATE_LIMIT', String(limits.requestsPerSecond)),
      spares: wholeNumber(options, 'spares', 'FORKD_SPARES', '4'),
      eager: options.flag('eager'),
      strict: options.flag('strict'),
      leaveRunning: options.flag('leave-running') || process.env['FORKD_LEAVE_RUNNING'] === '1',
      version: VERSION,
      ...(tokenFile === undefined ? {} : { tokenFile }),
      ...(tls === undefined ? {} : { tls }),
      ...(snapshotRoot === undefined ? {} : { snapshotRoot }),
      // Absolute: `forkd cleanup`, wherever it is run, finds it by the command line of the keeper.
      statePath: resolve(options.string('state', { env: 'FORKD_STATE' }) ?? beside(snapshotRoot, 'state.json')),
      logLevel: options.string('log-level', { env: 'FORKD_LOG' }) ?? levelOfReference() ?? 'info',
      onProblem: warn,
    });
    const where = `listening on port ${served.port}${tls ? ' (TLS)' : ''} and ${served.options.socketPath}`;
    // Whoever read what it says may be gone: no reason to end without ending its sandboxes.
    for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined);
    process.on('SIGHUP', () => {
      supervisor.reloading();
      served.reopen();
      supervisor.ready(where);
    });
    const stop = new Promise<void>((resolve) => {
      for (const name of ['SIGINT', 'SIGTERM'] as const) process.on(name, () => resolve());
    });
    step(where);
    supervisor.ready(where);
    await stop;
    supervisor.stopping();
    step('draining');
    await served.close();
    return 0;
  },
};

/** RUST_LOG may also hold filters for single modules, which mean nothing here. */
const levelOfReference = (): string | undefined =>
  /^(trace|debug|info|warn|error)$/i.exec(process.env['RUST_LOG'] ?? '')?.[0].toLowerCase();

/** What is in the data directory belongs to the daemon of the tags there; a daemon with others has its own beside those. */
const beside = (snapshotRoot: string | undefined, name: string): string =>
  snapshotRoot === undefined || resolve(snapshotRoot) === resolve(snapshotsDir())
    ? join(dataDir(), name)
    : join(snapshotRoot, `.${name}`);

const wholeNumber = (options: Options, name: string, env: string, byDefault: string): number => {
  const text = options.string(name, { env }) ?? byDefault;
  if (!/^\d{1,6}$/.test(text)) throw options.wrong(`--${name}`, `'${text}' is not a whole number below 1000000`);
  return Number(text);
};
