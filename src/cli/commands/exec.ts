import type { ExecReply } from '../../contract/guest.js';
import { ForkdError } from '../../contract/errors.js';
import type { Command } from '../command.js';
import { printRaw } from '../render.js';
import { callTarget, targetOptions } from './target.js';

const DEFAULT_TIMEOUT_SECS = 30;

export const exec: Command = {
  name: 'exec',
  usage: 'exec [--target <TARGET>] [options] -- CMD ARGS',
  description: 'Run a command in a sandbox; exits with its exit code',
  options: [...targetOptions, ['--timeout-secs <N>', `Longest run, seconds (default ${DEFAULT_TIMEOUT_SECS})`]],
  examples: [
    'forkd exec --target sb-6743b1c2-9f31c2aa -- uname -a',
    'forkd exec --child forkd-child-3 -- python3 -c "print(1)"',
  ],
  run: async (options) => {
    if (options.rest.length === 0) throw options.wrong('CMD', 'give a command after --');
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
    // A guest ended by signal N reports -N; an exit status is 8 bits.
    return reply.exit_code & 0xff;
  },
};
