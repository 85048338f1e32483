import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { WORKING_SET_FILE } from '../../src/contract/snapshot.js';
import { Engine } from '../../src/main/engine.js';
import { LazyImage } from '../../src/main/memory/lazy.js';
import { Template } from '../../src/main/template/template.js';
import { warmRounds } from '../../src/main/template/warmth.js';
import type { Bench, Parameters } from '../bench.js';
import { evict } from '../cold.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round } from '../stats.js';

interface Start {
  ms: number;
  /** Bytes of layers that were read by then; 0 when eager. */
  read_bytes: number;
  stored_bytes: number;
  failed: number;
}

interface Trial {
  eager: Start;
  lazy: Start;
  prefetch: Start;
  still_cached: number;
}

/** From opening the snapshot to the first answer of the first of n children. */
const firstEval = async (n: number, lazy: boolean): Promise<Start> => {
  const engine = new Engine();
  try {
    const driver = await engine.driver();
    engine.pool.warm();
    const began = performance.now();
    const snapshot = await engine.load(BENCH_TAG, { lazy });
    const { memory } = snapshot;
    if (lazy && !(memory instanceof LazyImage)) throw new Error('this host cannot load memory lazily');
    const rounds = warmRounds(n, false);
    const template = await Template.start({
      pool: engine.pool,
      driver,
      snapshot,
      rounds,
      width: 1,
      firstEval: FIRST_EVAL,
    });
    let first: { ms: number; read: number } | undefined;
    const { sandboxes, firstResults, failures } = await engine.forkFrom(
      template,
      { n, firstEval: FIRST_EVAL },
      {
        onReady: () => {
          first ??= {
            ms: performance.now() - began,
            read: memory instanceof LazyImage ? memory.counts.readBytes : 0,
          };
        },
      },
    );
    const wrong = sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
    const { storedBytes } = snapshot.source.info;
    await engine.kill(sandboxes);
    await template.retire();
    const { ms = Number.NaN, read = 0 } = first ?? {};
    return { ms, read_bytes: read, stored_bytes: storedBytes, failed: failures.length + wrong };
  } finally {
    await engine.close();
  }
};

const trial = async ({ n }: Parameters): Promise<Trial> => {
  const { store } = new Engine();
  const { vmstate, rootfs } = store.open(BENCH_TAG);
  const files = [...store.chain(BENCH_TAG).map(({ memory }) => memory), vmstate];
  let still_cached = 0;
  const cold = async (lazy: boolean): Promise<Start> => {
    // Other VMs of this host may have the disk open, and keep it cached.
    await evict([rootfs]);
    still_cached = Math.max(still_cached, await evict(files));
    return firstEval(n, lazy);
  };
  const eager = await cold(false);
  rmSync(join(store.dir(BENCH_TAG), WORKING_SET_FILE), { force: true });
  const lazy = await cold(true);
  // What the start before has recorded is there.
  const prefetch = await cold(true);
  return { eager, lazy, prefetch, still_cached };
};

export const lazyBench: Bench<Trial> = {
  name: 'lazy',
  description:
    'From a cold page cache: opening the snapshot, starting a template, and the first right answer of the first of n children to ' +
    'numpy.zeros(5).tolist(). With all of the memory loaded before (eager_ms), loaded when it is touched (lazy_ms), and with what the ' +
    'start before touched loaded first (prefetch_ms). read_share, prefetch_share: of the stored bytes, those that were read by then.',
  full: { n: 2, trials: 5 },
  smoke: { n: 2, trials: 1 },
  trial,
  summarise: (trials, { n }) => {
    const ms = (pick: (t: Trial) => Start) => round(median(trials.map((t) => pick(t).ms)));
    const share = (pick: (t: Trial) => Start) =>
      round(median(trials.map((t) => pick(t).read_bytes / pick(t).stored_bytes)));
    return {
      n,
      eager_ms: ms((t) => t.eager),
      lazy_ms: ms((t) => t.lazy),
      prefetch_ms: ms((t) => t.prefetch),
      read_share: share((t) => t.lazy),
      prefetch_share: share((t) => t.prefetch),
      stored_bytes: trials[0]?.lazy.stored_bytes,
      still_cached_bytes: Math.max(...trials.map((t) => t.still_cached)),
      failed: trials.reduce((sum, t) => sum + t.eager.failed + t.lazy.failed + t.prefetch.failed, 0),
    };
  },
};
