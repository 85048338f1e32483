import type { EvalReply } from '../../contract/guest.js';
import type { Command } from '../command.js';
import { line } from '../progress.js';
import { printLine, printPrettyJson, printRaw } from '../render.js';
import { callTarget, targetOptions } from './target.js';

const TIMEOUT_MS = 30_000;

export const evaluate: Command = {
  name: 'eval',
  usage: 'eval [--target <TARGET>] [options] -- CODE',
  description: 'Run Python in the warm interpreter of a sandbox; prints the value of the last expression',
  options: [...targetOptions, ['--json', 'Print the whole reply']],
  examples: ['forkd eval --target sb-6743b1c2-9f31c2aa -- "numpy.zeros(5).tolist()"'],
  run: async (options) => {
    if (options.rest.length === 0) throw options.wrong('CODE', 'give code after --');
    const request = { action: 'eval' as const, code: options.rest.join(' ') };
    const reply = (await callTarget(options, request, { connectMs: 5000, replyMs: TIMEOUT_MS })) as EvalReply;
    if (options.flag('json')) {
      printPrettyJson(reply);
      return reply.error === undefined ? 0 : 1;
    }
    printRaw(reply.stdout ?? '');
    process.stderr.write(reply.stderr ?? '');
    if (reply.error !== undefined) {
      line(`error: ${reply.error}`);
      const trace = reply.traceback ?? reply.stack;
      if (trace) line(trace.trimEnd());
      return 1;
    }
    printLine(reply.result_json ?? reply.result ?? 'None');
    return 0;
  },
};
