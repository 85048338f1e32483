import { Engine } from '../../src/main/engine.js';
import type { Bench, Parameters } from '../bench.js';
import { pssKib } from '../host.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round, spread } from '../stats.js';

interface Trial {
  spawn_ms: number[];
  load_ms: number[];
  first_answer_ms: number[];
  ready_ms: number[];
  all_ready_ms: number;
  image_load_ms: number;
  pss_kib: number[];
  failed: number;
}

const trial = async ({ n }: Parameters): Promise<Trial> => {
  const engine = new Engine();
  try {
    const { sandboxes, failures, firstResults, ready_ms, load_ms } = await engine.fork({
      tag: BENCH_TAG,
      n,
      cold: true,
      firstEval: FIRST_EVAL,
    });
    const wrong = sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
    const times = sandboxes.flatMap(({ times: t }) => (t ? [t] : []));
    return {
      spawn_ms: times.map((t) => t.spawn_ms),
      load_ms: times.map((t) => t.load_ms),
      first_answer_ms: times.map((t) => t.first_answer_ms),
      ready_ms: times.map((t) => t.spawn_ms + t.load_ms + t.first_answer_ms),
      all_ready_ms: ready_ms,
      image_load_ms: load_ms,
      pss_kib: sandboxes.map((s) => pssKib(s.vmm.pid)),
      failed: failures.length + wrong,
    };
  } finally {
    await engine.close();
  }
};

export const coldRestore: Bench<Trial> = {
  name: 'cold-restore',
  description:
    'Restore n children the stock way: start QEMU, load device state, take identity and answer numpy.zeros(5).tolist(). ' +
    'ready_ms is one child from its process to its right answer; all_ready_ms is the last of n on all cores; ' +
    'image_load_ms (reading the memory image once) comes before both. A wrong or missing answer counts as failed.',
  full: { n: 10, trials: 5 },
  smoke: { n: 2, trials: 1 },
  trial,
  summarise: (trials, { n }) => {
    const all = (key: 'spawn_ms' | 'load_ms' | 'first_answer_ms' | 'ready_ms' | 'pss_kib') =>
      trials.flatMap((t) => t[key]);
    return {
      n,
      spawn_ms: spread(all('spawn_ms')),
      load_ms: spread(all('load_ms')),
      first_answer_ms: spread(all('first_answer_ms')),
      ready_ms: spread(all('ready_ms')),
      all_ready_ms: round(median(trials.map((t) => t.all_ready_ms))),
      image_load_ms: round(median(trials.map((t) => t.image_load_ms))),
      pss_kib_per_child: round(median(all('pss_kib'))),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
    };
  },
};
