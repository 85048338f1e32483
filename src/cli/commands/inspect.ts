import { formatBytes } from '../../contract/units.js';
import { snapshotsDir } from '../../main/paths.js';
import { type Inspection, inspect as look, type Verification } from '../../main/store/inspection.js';
import { Store } from '../../main/store/store.js';
import type { Command } from '../command.js';
import { printFacts, printJson, printLine, printTable } from '../render.js';
import { withEngine } from '../with-engine.js';

export const inspect: Command = {
  name: 'inspect',
  args: '[tag]',
  description: 'Look into a snapshot: its layers, its memory image, and what a host must have to restore it',
  options: [
    ['--verify', 'Read every chunk of every layer and check it against its hash'],
    ['--json', 'Print one JSON object'],
  ],
  examples: ['forkd inspect base', 'forkd inspect child --verify --json'],
  run: async (options) => {
    const tag = options.one('TAG');
    const found = look(new Store(snapshotsDir()), tag);
    const verified = options.flag('verify') ? await withEngine((engine) => engine.verify(tag)) : undefined;
    if (options.flag('json')) printJson(verified ? { ...found, verified } : found);
    else {
      show(found);
      if (verified) showVerified(verified);
    }
    return verified && verified.problems.length > 0 ? 1 : 0;
  },
};

const HASH_CHARS = 16;

const show = ({ tag, dir, layers, image, working_set, compatibility }: Inspection): void => {
  const { isolation, vmm, tsc_khz, vcpus, agent_generation, tap, kernel, rootfs, volumes } = compatibility;
  printFacts([
    ['tag', tag],
    ['dir', dir],
    ['image', `${formatBytes(image.bytes)}: ${image.chunks} chunks of ${formatBytes(image.chunk_bytes)}`],
    ['zero', `${formatBytes(image.zero_bytes)}: ${image.zero_chunks} chunks, stored nowhere`],
    ['unique', `${formatBytes(image.unique_bytes)}, of this tag alone`],
    ['shared', `${formatBytes(image.shared_bytes)}, with its ancestors`],
    ['needed', `${formatBytes(image.stored_bytes)} to load all of it`],
    ['working set', working_set ? `${formatBytes(working_set.bytes)}: ${working_set.chunks} chunks` : '(not recorded)'],
    ['isolation', isolation],
    ['vmm', `${vmm.name} ${vmm.version}, machine ${vmm.machine}, cpu ${vmm.cpu_model}, ${vcpus} vCPU`],
    ['clock', `${tsc_khz} kHz`],
    ['agent', `generation ${agent_generation}`],
    ['kernel', `${kernel.path}  blake3 ${kernel.blake3.slice(0, HASH_CHARS)}`],
    ['rootfs', `${rootfs.path}  blake3 ${rootfs.blake3.slice(0, HASH_CHARS)}`],
    ...volumes.map(({ path, blake3 }): [string, string] => [
      'volume',
      `${path}  blake3 ${blake3.slice(0, HASH_CHARS)}`,
    ]),
    ['tap', tap ?? undefined],
  ]);
  printLine();
  printTable(
    ['LAYER', 'FILE', 'ON DISK', 'CHUNKS', 'PAGES', 'ZEROED', 'FRAMES', 'SHARED', 'ROOT'],
    layers.map((layer) => [
      layer.tag,
      formatBytes(layer.file_bytes),
      formatBytes(layer.disk_bytes),
      String(layer.chunks),
      String(layer.data_pages),
      String(layer.zero_pages),
      String(layer.unique_frames),
      String(layer.shared_frames),
      layer.root.slice(0, HASH_CHARS),
    ]),
  );
};

const showVerified = ({ chunks, read_bytes, problems }: Verification): void => {
  printLine();
  for (const { tag, chunk, reason } of problems) printLine(`✗ ${tag}: chunk ${chunk}: ${reason}`);
  if (problems.length === 0) printLine(`✓ ${chunks} chunks, ${formatBytes(read_bytes)} read: all as they were written`);
};
