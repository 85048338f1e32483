import type { ExecReply, RunOptions } from '../../contract/guest.js';
import { ForkdError } from '../../contract/errors.js';
import type { Command } from '../command.js';
import { follow, terminalSize } from '../follow.js';
import { withLink } from '../guest-link.js';
import type { Options } from '../options.js';
import { printLine, printRaw } from '../render.js';
import { callTarget, targetOptions } from './target.js';

const DEFAULT_TIMEOUT_SECS = 30;

/** Any of these, or an ID before the `--`, and output comes as it is written. */
const STREAMED = ['interactive', 'tty', 'detach'];
const STREAMED_VALUES: [string, string?][] = [
  ['env', 'e'],
  ['cwd', 'w'],
  ['user', 'u'],
];

export const exec: Command = {
  name: 'exec',
  args: '[...id]',
  usage: 'exec [-i] [-t] [options] <ID> -- CMD ARGS, or: exec [--target <TARGET>] -- CMD ARGS',
  description: 'Run a command in a sandbox; exits with its exit code',
  options: [
    ['-i, --interactive', 'Our stdin is its stdin (with -d: it waits for input)'],
    ['-t, --tty', 'On a terminal of its own; stdout and stderr are one then'],
    ['-d, --detach', 'Leave it in the background, and print its number for `forkd attach`'],
    ['-e, --env <NAME=VALUE>', 'Add to its environment (several times)'],
    ['-w, --cwd <DIR>', 'Directory'],
    ['-u, --user <USER>', 'NAME, UID, NAME:GROUP or UID:GID'],
    [
      '--timeout-secs <N>',
      `Longest run, seconds; then it is killed with all that it started (default: none with an ID, ${DEFAULT_TIMEOUT_SECS} with --target alone)`,
    ],
    ...targetOptions,
  ],
  examples: [
    'forkd exec -it sb-6743b1c2-9f31c2aa -- bash',
    'forkd exec sb-6743b1c2-9f31c2aa -e LEVEL=3 -u nobody -- ./work',
    'tar -c src | forkd exec -i sb-6743b1c2-9f31c2aa -- tar -x -C /root',
    'forkd exec --target sb-6743b1c2-9f31c2aa -- uname -a',
  ],
  run: (options) => {
    if (options.rest.length === 0) throw options.wrong('CMD', 'give a command after --');
    const streamed =
      options.positional.length > 0 ||
      STREAMED.some((name) => options.flag(name)) ||
      STREAMED_VALUES.some(([name, short]) => options.strings(name, short).length > 0);
    return streamed ? runStreamed(options) : runWhole(options);
  },
};

/** All output at once, when it has ended. */
const runWhole = async (options: Options): Promise<number> => {
  const timeout = options.count('timeout-secs') ?? DEFAULT_TIMEOUT_SECS;
  const request = { action: 'exec' as const, args: options.rest, timeout };
  const reply = (await callTarget(options, request, {
    connectMs: 5000,
    replyMs: timeout * 1000 + 5000,
  })) as ExecReply;
  printRaw(reply.stdout ?? '');
  process.stderr.write(reply.stderr ?? '');
  if (reply.timed_out) throw new ForkdError('EXEC_TIMEOUT', { seconds: timeout });
  if (reply.error !== undefined) throw new ForkdError('AGENT_ERROR', { error: reply.error });
  return exitCode(reply.exit_code);
};

const runStreamed = (options: Options): Promise<number> => {
  const timeout = options.count('timeout-secs');
  const [interactive, tty, detach] = STREAMED.map((name) => options.flag(name)) as [boolean, boolean, boolean];
  const size = tty ? (terminalSize() ?? { rows: 24, cols: 80 }) : {};
  const [cwd, user] = [options.string('cwd', { short: 'w' }), options.string('user', { short: 'u' })];
  const run: RunOptions = {
    args: options.rest,
    env: { ...(tty && process.env['TERM'] ? { TERM: process.env['TERM'] } : {}), ...environment(options) },
    stdin: interactive || tty,
    tty,
    ...size,
    ...(cwd === undefined ? {} : { cwd }),
    ...(user === undefined ? {} : { user }),
    ...(timeout === undefined ? {} : { timeout }),
  };
  return withLink(options, async (link) => {
    if (detach) {
      const { run: number } = await link.ask({ action: 'run', detach: true, ...run });
      printLine(String(number));
      return 0;
    }
    const ended = await follow(link.open({ action: 'run', ...run }), { input: interactive, terminal: tty });
    if (ended?.timed_out) throw new ForkdError('EXEC_TIMEOUT', { seconds: timeout ?? 0 });
    return exitCode(ended?.exit_code ?? 0);
  });
};

/** A guest ended by signal N reports -N; an exit status is 8 bits. */
export const exitCode = (code: number): number => code & 0xff;

const environment = (options: Options): Record<string, string> =>
  Object.fromEntries(
    options.strings('env', 'e').map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1) throw options.wrong('--env', `'${pair}' is not NAME=VALUE`);
      return [pair.slice(0, at), pair.slice(at + 1)];
    }),
  );
