import { cpSync, mkdtempSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round } from '../stats.js';

interface Trial {
  depth0_ms: number[];
  depth_ms: number[];
  disk_bytes: number;
  base_bytes: number;
  /** Memory that the links changed. */
  written_bytes: number;
  failed: number;
}

const tagAt = (depth: number): string => (depth === 0 ? BENCH_TAG : `link-${depth}`);

/** Each link keeps some MiB that no other has. Returns the bytes of memory that the links changed. */
const build = async (snapshotRoot: string, depth: number, mib: number): Promise<number> => {
  const engine = new Engine({ snapshotRoot });
  try {
    let written = 0;
    await engine.warm(BENCH_TAG);
    for (let link = 1; link <= depth; link++) {
      const { sandboxes } = await engine.fork({ tag: tagAt(link - 1), n: 1 });
      const [child] = sandboxes as [Sandbox];
      await engine.eval(child.id, `import builtins, os; builtins.kept_${link} = os.urandom(${mib} << 20)`);
      const branch = await engine.branchInto(child.id, { tag: tagAt(link) });
      written += (await branch.written).dirty_bytes;
      await engine.kill([child]);
    }
    return written;
  } finally {
    await engine.close();
  }
};

/** From the request to the last answer, in an engine that knows nothing yet. */
const ready = async (snapshotRoot: string, depth: number, n: number): Promise<{ ms: number; failed: number }> => {
  const engine = new Engine({ snapshotRoot });
  try {
    await engine.driver();
    engine.pool.warm();
    const { sandboxes, failures, firstResults, load_ms, ready_ms } = await engine.fork({
      tag: tagAt(depth),
      n,
      firstEval: FIRST_EVAL,
    });
    const wrong = sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
    return { ms: load_ms + ready_ms, failed: failures.length + wrong };
  } finally {
    await engine.close();
  }
};

const onDisk = (dir: string): number =>
  readdirSync(dir).reduce((sum, name) => sum + statSync(join(dir, name)).blocks * 512, 0);

const trial = async ({ n, depth, write_mib, starts }: Parameters): Promise<Trial> => {
  const links = Number(depth);
  const root = mkdtempSync(join(tmpdir(), 'forkd-bench-'));
  try {
    const { store } = new Engine();
    cpSync(store.dir(BENCH_TAG), join(root, BENCH_TAG), { recursive: true });
    const base_bytes = onDisk(join(root, BENCH_TAG));
    const written_bytes = await build(root, links, Number(write_mib));
    const disk_bytes = Array.from({ length: links + 1 }, (_, i) => onDisk(join(root, tagAt(i)))).reduce(
      (a, b) => a + b,
    );
    const result: Trial = { depth0_ms: [], depth_ms: [], disk_bytes, base_bytes, written_bytes, failed: 0 };
    // In turns: what disturbs the host disturbs both.
    for (let i = 0; i < Number(starts); i++) {
      const shallow = await ready(root, 0, n);
      const deep = await ready(root, links, n);
      result.depth0_ms.push(shallow.ms);
      result.depth_ms.push(deep.ms);
      result.failed += shallow.failed + deep.failed;
    }
    return result;
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
};

export const chain: Bench<Trial> = {
  name: 'chain',
  description:
    'A chain of snapshots, each a child of the one before that keeps write_mib more. From the request for n children until the last has answered ' +
    'numpy.zeros(5).tolist(), template and all, for the base (ready_ms_depth0) and for the last of the chain (ready_ms); the page cache is warm. ' +
    'disk_over_written: what the whole chain takes on the disk, over the base and the memory that the links changed.',
  full: { n: 2, trials: 3, depth: 8, write_mib: 4, starts: 3 },
  smoke: { n: 2, trials: 1, depth: 2, write_mib: 1, starts: 1 },
  trial,
  summarise: (trials, { n, depth }) => {
    const shallow = median(trials.flatMap((t) => t.depth0_ms));
    const deep = median(trials.flatMap((t) => t.depth_ms));
    return {
      n,
      depth,
      ready_ms_depth0: round(shallow),
      ready_ms: round(deep),
      ratio: round(deep / shallow),
      disk_over_written: round(median(trials.map((t) => t.disk_bytes / (t.base_bytes + t.written_bytes)))),
      written_bytes: median(trials.map((t) => t.written_bytes)),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
    };
  },
};
