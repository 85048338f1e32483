import { Engine } from '../../src/main/engine.js';
import { jailAbility } from '../../src/main/host/jail.js';
import type { Bench, Parameters } from '../bench.js';
import { inTurns, type Turns } from '../in-turns.js';
import { BENCH_TAG } from '../parent.js';
import { median, round, spread } from '../stats.js';

type Trial = Turns<'on' | 'off'>;

const trial = async ({ n, rounds }: Parameters): Promise<Trial> => {
  const engines = { on: new Engine({ resident: true }), off: new Engine({ resident: true, jail: false }) };
  const request = { tag: BENCH_TAG, n };
  try {
    return await inTurns(Number(rounds), {
      on: { engine: engines.on, request },
      off: { engine: engines.off, request },
    });
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
    const on = trials.flatMap((t) => t.ready.on);
    const off = trials.flatMap((t) => t.ready.off);
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
