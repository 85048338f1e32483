import { Engine } from '../../src/main/engine.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { spread } from '../stats.js';

interface Trial {
  eval_ms: number[];
  exec_ms: number[];
  failed: number;
}

/** Calls before the clock counts: the child's translated code for them is part of being warm. */
const WARM_CALLS = 50;

const trial = async ({ n }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true });
  try {
    const { sandboxes } = await engine.fork({ tag: BENCH_TAG, n: 1, firstEval: FIRST_EVAL });
    const id = sandboxes[0]?.id ?? '';
    let failed = 0;
    const time = async (count: number, call: () => Promise<boolean>): Promise<number[]> => {
      const took: number[] = [];
      for (let i = 0; i < count + WARM_CALLS; i++) {
        const began = performance.now();
        if (!(await call())) failed++;
        if (i >= WARM_CALLS) took.push(performance.now() - began);
      }
      return took;
    };
    const eval_ms = await time(n, async () => (await engine.eval(id, FIRST_EVAL)).result === FIRST_ANSWER);
    const exec_ms = await time(Math.ceil(n / 10), async () => (await engine.exec(id, ['/bin/true'])).exit_code === 0);
    return { eval_ms, exec_ms, failed };
  } finally {
    await engine.close();
  }
};

export const evalBench: Bench<Trial> = {
  name: 'eval',
  description:
    'Round trips to one warm child through the virtio-serial port, from the engine: eval of numpy.zeros(5).tolist() in the warm ' +
    'interpreter (n calls), and exec of /bin/true (n/10 calls). A wrong answer counts as failed.',
  full: { n: 500, trials: 3 },
  smoke: { n: 20, trials: 1 },
  trial,
  summarise: (trials, { n }) => ({
    n,
    eval_ms: spread(trials.flatMap((t) => t.eval_ms)),
    exec_ms: spread(trials.flatMap((t) => t.exec_ms)),
    failed: trials.reduce((sum, t) => sum + t.failed, 0),
  }),
};
