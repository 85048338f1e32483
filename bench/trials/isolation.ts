import { Engine } from '../../src/main/engine.js';
import { jailAbility } from '../../src/main/host/jail.js';
import type { Bench, Parameters } from '../bench.js';
import { inTurns, type Turns } from '../in-turns.js';
import { BENCH_TAG, CARD_TAG, ensureParent } from '../parent.js';
import { median, round, spread } from '../stats.js';

type Trial = Turns<'on' | 'off' | 'net'>;

/** Everything is denied: rules are made all the same. */
const NOTHING = { allow: [], allowDomains: [] };

const trial = async ({ n, rounds }: Parameters): Promise<Trial> => {
  await ensureParent(CARD_TAG);
  const engines = { on: new Engine({ resident: true }), off: new Engine({ resident: true, jail: false }) };
  const request = { tag: BENCH_TAG, n };
  // Made in advance, as a pool is.
  const before = () => engines.on.networks.fill(n);
  try {
    return await inTurns(Number(rounds), {
      on: { engine: engines.on, request },
      off: { engine: engines.off, request },
      net: { engine: engines.on, request: { tag: CARD_TAG, n, network: NOTHING }, before },
    });
  } finally {
    for (const engine of Object.values(engines)) await engine.close();
  }
};

export const isolation: Bench<Trial> = {
  name: 'isolation',
  description:
    'Fork n children from a resident template with the jail and control groups on, from one without, and from one with both and a network of ' +
    'its own for each child, made in advance, in turn, in the same process. jail_ratio, net_ratio: median time until the last child has ' +
    'answered, over that of those without anything. missing: parts of the jail that this host cannot have. Needs root.',
  full: { n: 100, trials: 3, rounds: 6 },
  smoke: { n: 2, trials: 1, rounds: 2 },
  trial,
  summarise: (trials, { n }) => {
    const [on, off, net] = (['on', 'off', 'net'] as const).map((arm) => trials.flatMap((t) => t.ready[arm])) as [
      number[],
      number[],
      number[],
    ];
    return {
      n,
      jail_ratio: round(median(on) / median(off)),
      net_ratio: round(median(net) / median(off)),
      jail_ready_ms: spread(on),
      net_ready_ms: spread(net),
      plain_ready_ms: spread(off),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
      missing: Object.keys(jailAbility().missing),
    };
  },
};
