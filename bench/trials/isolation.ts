import { Engine } from '../../src/main/engine.js';
import { jailAbility } from '../../src/main/host/jail.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round, spread } from '../stats.js';

interface Trial {
  on: number[];
  off: number[];
  failed: number;
}

/** One of each, `rounds` times: what the machine does meanwhile befalls both. */
const trial = async ({ n, rounds }: Parameters): Promise<Trial> => {
  const engines = { on: new Engine({ resident: true }), off: new Engine({ resident: true, jail: false }) };
  const ready: Record<keyof typeof engines, number[]> = { on: [], off: [] };
  let failed = 0;
  try {
    for (const engine of Object.values(engines)) {
      const { snapshot } = await engine.warm(BENCH_TAG, { firstEval: FIRST_EVAL });
      // See fan-out.ts.
      while (snapshot?.memory.server !== undefined) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    for (let i = 0; i < Number(rounds); i++) {
      const order: (keyof typeof engines)[] = i % 2 === 0 ? ['on', 'off'] : ['off', 'on'];
      for (const which of order) {
        const engine = engines[which];
        const made = await engine.fork({ tag: BENCH_TAG, n, firstEval: FIRST_EVAL });
        ready[which].push(made.ready_ms);
        const { sandboxes, failures, firstResults } = made;
        failed += failures.length;
        failed += sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
        await engine.kill(sandboxes);
      }
    }
    return { ...ready, failed };
  } finally {
    for (const engine of Object.values(engines)) await engine.close();
  }
};

export const isolation: Bench<Trial> = {
  name: 'isolation',
  description:
    'Fork n children from a resident template with the jail and control groups on, and from one without, in turn, in the same process. ' +
    'jail_ratio: median time until the last child has answered, on over off. missing: parts of the jail that this host cannot have.',
  full: { n: 100, trials: 3, rounds: 6 },
  smoke: { n: 3, trials: 1, rounds: 2 },
  trial,
  summarise: (trials, { n }) => {
    const on = trials.flatMap((t) => t.on);
    const off = trials.flatMap((t) => t.off);
    return {
      n,
      jail_ratio: round(median(on) / median(off)),
      jail_ready_ms: spread(on),
      plain_ready_ms: spread(off),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
      missing: Object.keys(jailAbility().missing),
    };
  },
};
