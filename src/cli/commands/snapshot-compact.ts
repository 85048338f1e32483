import { formatBytes } from '../../contract/units.js';
import type { Command } from '../command.js';
import { detail, step } from '../progress.js';
import { printFacts, printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

export const snapshotCompact: Command = {
  name: 'snapshot-compact',
  description: 'Make one base of a snapshot and its ancestors, under a new tag',
  options: [
    ['--from <TAG>', 'The snapshot whose chain is merged; it stays'],
    ['--to <TAG>', 'Name of the new base'],
    ['--json', 'Print one JSON object'],
  ],
  examples: ['forkd snapshot-compact --from child --to child-flat'],
  run: (options) => {
    const from = options.required('from');
    const to = options.required('to');
    if (from === to) throw options.wrong('--to', 'must be another tag than --from');
    return withEngine(async (engine, signal) => {
      step(`merging the chain of '${from}' into '${to}'`);
      const { manifest, dir, links, memory_file_bytes } = await engine.compact({ from, to }, { signal });
      const { branched_from = '', memory_root } = manifest;
      if (options.flag('json')) {
        printJson({ tag: to, dir, branched_from, memory_root, memory_file_bytes, links_merged: links });
        return 0;
      }
      printFacts([
        ['tag', to],
        ['dir', dir],
        ['branched_from', branched_from],
      ]);
      detail(`${links} links merged, ${formatBytes(memory_file_bytes)}; it needs no other tag`);
      detail(`verify it: forkd inspect ${to} --verify`);
      return 0;
    });
  },
};
