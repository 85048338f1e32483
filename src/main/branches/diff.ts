/** Two branches compared: tags, of which a child each is forked where their files or processes are asked for, or live sandboxes. */
import type { DiffPart, DiffReport, MemoryDiff } from '../../contract/branches.js';
import { ForkdError } from '../../contract/errors.js';
import type { ImageOf } from '../../contract/task.js';
import type { Engine } from '../engine.js';
import type { OpenChain } from '../store/open-chain.js';
import type { Store } from '../store/store.js';
import { diffFiles } from './files-diff.js';
import type { Guest } from './guest.js';
import { diffProcesses } from './processes-diff.js';

/** A sandbox that runs. */
export interface LiveSide {
  guest: Guest;
  snapshotTag: string;
  snapshotRoot?: string;
  pid: number;
}

const PAGE_BYTES = 4096;

/**
 * `live` finds the sandboxes among the two; what it does not know is a tag. Throws SNAPSHOT_NOT_FOUND and what else a fork throws,
 * GUEST_OUTDATED, AGENT_ERROR, and DIFF_IMPOSSIBLE for memories of different sizes.
 */
export const diffBranches = async (
  engine: Engine,
  [a, b]: [string, string],
  parts: DiffPart[],
  live: (name: string) => LiveSide | undefined,
): Promise<DiffReport> => {
  const sides = [a, b].map((name) => ({ name, live: live(name) })) as [Named, Named];
  const report: DiffReport = { a, b };
  if (parts.includes('files') || parts.includes('processes')) {
    await withGuests(engine, sides, async (one, other) => {
      if (parts.includes('files')) {
        const { changes, truncated } = await diffFiles(one, other, haveSameDisk(engine.store, sides));
        report.files = changes;
        if (truncated) report.files_truncated = true;
      }
      if (parts.includes('processes')) report.processes = await diffProcesses(one, other);
    });
  }
  if (parts.includes('memory')) report.memory = await diffMemory(engine, sides);
  return report;
};

interface Named {
  name: string;
  live: LiveSide | undefined;
}

const withGuests = async (
  engine: Engine,
  sides: [Named, Named],
  use: (a: Guest, b: Guest) => Promise<void>,
): Promise<void> => {
  const born: Parameters<Engine['kill']>[0] = [];
  const guestOf = async ({ name, live }: Named): Promise<Guest> => {
    if (live) return live.guest;
    const { sandboxes, failures } = await engine.fork({ tag: name, n: 1 });
    const [sandbox] = sandboxes;
    if (!sandbox)
      throw failures[0]
        ? ForkdError.fromData(failures[0].error)
        : new ForkdError('INTERNAL', { reason: 'a fork without a child' });
    born.push(sandbox);
    return { ask: (request) => sandbox.ask(request), open: (request) => sandbox.stream(request) };
  };
  try {
    await use(await guestOf(sides[0]), await guestOf(sides[1]));
  } finally {
    await engine.kill(born);
  }
};

const tagOf = (store: Store, { name, live }: Named): string => {
  if (!live) return name;
  const { snapshotTag: tag, snapshotRoot: root } = live;
  return root === undefined ? tag : store.locate(tag, root);
};

const haveSameDisk = (store: Store, sides: [Named, Named]): boolean => {
  try {
    const [one, other] = sides.map((side) => store.manifest(tagOf(store, side)).rootfs_digest.blake3);
    return one === other;
  } catch {
    // The snapshot of a sandbox may be gone.
    return false;
  }
};

const diffMemory = async ({ store, pool }: Engine, sides: [Named, Named]): Promise<MemoryDiff> => {
  const chains: OpenChain[] = [];
  const imageOf = (side: Named): ImageOf => {
    const chain = store.hold(tagOf(store, side));
    chains.push(chain);
    const { memory_root: parentRoot, tag } = chain.manifest;
    const { live } = side;
    if (live?.snapshotRoot !== undefined && live.snapshotRoot !== parentRoot)
      throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag });
    return { layers: chain.layers, ...(live ? { live: { pid: live.pid, parentRoot } } : {}) };
  };
  try {
    const [a, b] = [imageOf(sides[0]), imageOf(sides[1])];
    const [x, y] = chains.map(({ manifest }) => manifest.memory_mib);
    if (x !== y) throw new ForkdError('DIFF_IMPOSSIBLE', { reason: `one has ${x} MiB of memory, the other ${y}` });
    const { pages, chunks, imageBytes, privateBytes } = await pool.run('memoryDiff', { a, b });
    const [private_bytes_a, private_bytes_b] = privateBytes;
    return { image_bytes: imageBytes, pages, bytes: pages * PAGE_BYTES, chunks, private_bytes_a, private_bytes_b };
  } finally {
    for (const chain of chains) chain.close();
  }
};
