import { ForkdError } from '../../contract/errors.js';
import { parseTag } from '../../contract/names.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { detail, step } from '../progress.js';
import { printFacts, printJson } from '../render.js';
import { withEngine } from '../with-engine.js';
import { words } from '../words.js';

/** A step of a build may take long; the reference's. */
const EXEC_SECS = 600;

export const snapshotDiff: Command = {
  name: 'snapshot-diff',
  description: 'Run a command in a child of a snapshot and keep what it changed as a new snapshot on top of it',
  options: [
    ['--from <TAG>', 'The snapshot to start from; it stays, as the parent'],
    ['--tag <TAG>', 'Name of the new snapshot'],
    ['--exec <COMMAND>', 'What to run: words, grouped by quotes; no shell, unless you name one'],
    ['--exec-timeout-secs <SECS>', `Longest time for it (default: ${EXEC_SECS})`],
    ['--force', 'Replace the tag if it exists'],
    ['--eager', 'Load and check all of the memory first, instead of each part when it is touched'],
    ['--json', 'Print one JSON object'],
  ],
  examples: [`forkd snapshot-diff --from base --tag with-data --exec "sh -c 'seq 1000 > /root/data'"`],
  run: (options) => {
    const from = parseTag(options.required('from'));
    const tag = parseTag(options.required('tag'));
    if (from === tag) throw options.wrong('--tag', 'must be another tag than --from');
    const args = commandOf(options);
    const timeoutSecs = options.count('exec-timeout-secs') ?? EXEC_SECS;
    const force = options.flag('force');
    return withEngine(async (engine, signal) => {
      engine.store.open(from);
      if (!force && engine.store.exists(tag)) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
      step(`forking a child of '${from}'`);
      // A child can be branched when it was forked from a template, not when it was restored by itself.
      await engine.warm(from, { eager: options.flag('eager') }, { signal });
      const { sandboxes, failures } = await engine.fork({ tag: from, n: 1 }, { signal });
      const [child] = sandboxes;
      if (!child) throw failures[0] ? ForkdError.fromData(failures[0].error) : new ForkdError('CANCELLED');
      // An interrupted command ends with its machine.
      signal.addEventListener('abort', () => void engine.kill([child]));
      step(`running ${args[0]} in it`);
      const reply = await engine.exec(child.id, args, timeoutSecs).catch((error: unknown) => {
        throw signal.aborted ? new ForkdError('CANCELLED') : error;
      });
      if (reply.error !== undefined || reply.exit_code !== 0) {
        const output = [reply.stdout, reply.stderr, reply.error].filter((text) => text).join('\n');
        throw new ForkdError('DIFF_COMMAND_FAILED', { command: args.join(' '), code: reply.exit_code, output });
      }
      step(`writing what changed as '${tag}'`);
      const { pause_us, written } = await engine.branchInto(child.id, { tag, force });
      const { dir, dirty_bytes, written_bytes, manifest } = await written;
      const pauseMs = Math.round(pause_us / 1000);
      if (options.flag('json')) {
        const { parent_tag, memory_root } = manifest;
        const figures = { pause_ms: pauseMs, diff_physical_bytes: written_bytes, dirty_bytes };
        printJson({ tag, dir, parent_tag, memory_root, ...figures, stdout: reply.stdout, stderr: reply.stderr });
        return 0;
      }
      printFacts([
        ['tag', tag],
        ['dir', dir],
        ['parent_tag', from],
        ['pause_ms', String(pauseMs)],
        ['diff_physical_bytes', String(written_bytes)],
      ]);
      detail(`fork it: forkd fork --tag ${tag} -n 10`);
      return 0;
    });
  },
};

const commandOf = (options: Options): string[] => {
  const args = words(options.required('exec'));
  if (args === undefined) throw options.wrong('--exec', 'has a quote that is not closed');
  if (args.length === 0) throw options.wrong('--exec', 'is empty');
  return args;
};
