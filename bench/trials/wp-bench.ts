import { closeSync } from 'node:fs';
import { native } from '../../src/native/binding.js';
import type { TaskOutput } from '../../src/contract/task.js';
import { MiB } from '../../src/contract/units.js';
import { wpBench as task } from '../../src/workers/tasks/wp-bench.js';
import type { Bench, Parameters } from '../bench.js';
import { median, round } from '../stats.js';

type Run = TaskOutput<'wpBench'>;
interface Trial {
  shared: Run;
  private: Run;
  written: Run;
}

/** Into memory: what a disk takes for the copy is not what is measured. */
const run = (region_mib: number, isPrivate: boolean, writer: boolean): Run => {
  const target = native.memfdCreate('copy');
  try {
    return task({ bytes: region_mib * MiB, target, isPrivate, writer, copiers: 2 });
  } finally {
    closeSync(target);
  }
};

const trial = async ({ region_mib }: Parameters): Promise<Trial> => ({
  shared: run(Number(region_mib), false, false),
  private: run(Number(region_mib), true, false),
  written: run(Number(region_mib), true, true),
});

const figures = (runs: Run[], mib: number) => ({
  arm_ms_per_gib: round(median(runs.map((r) => (r.armMs * 1024) / mib))),
  copy_mib_per_s: round(median(runs.map((r) => (mib * 1000) / r.copyMs))),
  finalize_ms: round(median(runs.map((r) => r.finalizeMs))),
});

export const wpBench: Bench<Trial> = {
  name: 'wp-bench',
  description:
    'Copying memory as it is at one instant while it is in use (userfaultfd write protection), as `forkd wp-bench` does it, into memory: arm time per ' +
    'GiB and throughput with two copiers, for shared memory and for private memory. `written`: private, while a thread stores all over it; the longest ' +
    'that one of its stores took.',
  full: { n: 1, trials: 5, region_mib: 512 },
  smoke: { n: 1, trials: 1, region_mib: 16 },
  trial,
  summarise: (trials, { region_mib }) => {
    const mib = Number(region_mib);
    const written = trials.map((t) => t.written);
    const all = trials.flatMap((t) => [t.shared, t.private, t.written]);
    return {
      region_mib,
      shared: figures(
        trials.map((t) => t.shared),
        mib,
      ),
      private: figures(
        trials.map((t) => t.private),
        mib,
      ),
      written: {
        ...figures(written, mib),
        captured_by_fault: median(written.map((r) => r.byFault)),
        longest_store_ms: round(Math.max(...written.map((r) => r.longestStoreMs))),
      },
      failed: all.filter((r) => r.wrong > 0 || r.byFault + r.byCopiers !== r.pages).length,
    };
  },
};
