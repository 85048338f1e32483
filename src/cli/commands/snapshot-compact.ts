import { formatBytes } from '../../contract/units.js';
import { daemonOptions, daemonOrDisk } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { detail, step } from '../progress.js';
import { printFacts, printJson } from '../render.js';
import { withEngine } from '../with-engine.js';

/** Reading and writing a large memory on a slow disk. */
const TIMEOUT_MS = 600_000;

/** The daemon tells less than the engine. */
interface Compacted {
  tag: string;
  dir: string;
  branched_from?: string;
  memory_root?: string;
  memory_file_bytes?: number;
  links_merged?: number;
}

export const snapshotCompact: Command = {
  name: 'snapshot-compact',
  description: 'Make one base of a snapshot and its ancestors, under a new tag',
  options: [
    ['--from <TAG>', 'The snapshot whose chain is merged; it stays'],
    ['--to <TAG>', 'Name of the new base'],
    ['--json', 'Print one JSON object'],
    ...daemonOptions,
  ],
  examples: ['forkd snapshot-compact --from child --to child-flat'],
  run: async (options) => {
    const from = options.required('from');
    const to = options.required('to');
    if (from === to) throw options.wrong('--to', 'must be another tag than --from');
    step(`merging the chain of '${from}' into '${to}'`);
    const { value: made } = await daemonOrDisk<Compacted>(
      options,
      (controller) => controller.compactSnapshot(from, to),
      () => compactHere(from, to),
      TIMEOUT_MS,
    );
    if (options.flag('json')) {
      printJson(made);
      return 0;
    }
    printFacts([
      ['tag', made.tag],
      ['dir', made.dir],
      ['branched_from', made.branched_from],
    ]);
    if (made.memory_file_bytes !== undefined)
      detail(`${made.links_merged} links merged, ${formatBytes(made.memory_file_bytes)}; it needs no other tag`);
    detail(`verify it: forkd inspect ${to} --verify`);
    return 0;
  },
};

const compactHere = (from: string, to: string): Promise<Compacted> =>
  withEngine(async (engine, signal) => {
    const { manifest, dir, links, memory_file_bytes } = await engine.compact({ from, to }, { signal });
    const { branched_from = '', memory_root } = manifest;
    return { tag: to, dir, branched_from, memory_root, memory_file_bytes, links_merged: links };
  });
