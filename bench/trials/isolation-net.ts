import { readdirSync } from 'node:fs';
import { Engine } from '../../src/main/engine.js';
import { Networks } from '../../src/main/network/networks.js';
import { linkNames } from '../../src/net/route.js';
import type { Bench, Parameters } from '../bench.js';
import { inTurns, type Turns } from '../in-turns.js';
import { BENCH_TAG, CARD_TAG, ensureParent } from '../parent.js';
import { median, round, spread } from '../stats.js';

interface Trial extends Turns<'with' | 'without'> {
  make_ms: number;
  remove_ms: number;
  /** Links and descriptors that were not there before the namespaces were made. */
  leaked: number;
}

const NOTHING = { allow: [], allowDomains: [] };

const fanOuts = async (n: number, rounds: number): Promise<Turns<'with' | 'without'>> => {
  const engine = new Engine({ resident: true });
  // Made in advance, as a pool is.
  const before = () => engine.networks.fill(n);
  try {
    return await inTurns(rounds, {
      with: { engine, request: { tag: CARD_TAG, n, network: NOTHING }, before },
      without: { engine, request: { tag: BENCH_TAG, n } },
    });
  } finally {
    await engine.close();
  }
};

const makeAndRemove = async (count: number): Promise<Pick<Trial, 'make_ms' | 'remove_ms' | 'leaked'>> => {
  const engine = new Engine();
  const networks = new Networks(engine.pool);
  try {
    // Workers open what they keep.
    const links = linkNames().length;
    for (const one of await networks.take(engine.pool.width, NOTHING)) one.end();
    while (linkNames().length > links) await pause(5);
    const before = present();
    const began = performance.now();
    const taken = await networks.take(count, NOTHING);
    const made = performance.now();
    for (const one of taken) one.end();
    while (present() > before && performance.now() - made < GONE_MS) await pause(5);
    const gone = performance.now();
    return { make_ms: (made - began) / count, remove_ms: (gone - made) / count, leaked: present() - before };
  } finally {
    await networks.close();
    await engine.close();
  }
};

/** The kernel removes them in its own time; longer than this is never. */
const GONE_MS = 60_000;

const present = (): number => linkNames().length + readdirSync('/proc/self/fd').length;

const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

const trial = async ({ n, rounds, namespaces }: Parameters): Promise<Trial> => {
  await ensureParent(CARD_TAG);
  return { ...(await fanOuts(n, Number(rounds))), ...(await makeAndRemove(Number(namespaces))) };
};

export const isolationNet: Bench<Trial> = {
  name: 'isolation-net',
  description:
    'Fork n children with a network of their own, made in advance, from a snapshot with a network card, and n without either, in turn, in the ' +
    'same process. net_ratio: median time until the last child has answered, with over without. Then a number of namespaces, each with its tap, ' +
    'link, rules and sockets, are made and removed: milliseconds for each, and what is left. Needs root.',
  full: { n: 100, trials: 3, rounds: 6, namespaces: 1000 },
  smoke: { n: 2, trials: 1, rounds: 2, namespaces: 10 },
  trial,
  summarise: (trials, { n, namespaces }) => {
    const withNet = trials.flatMap((t) => t.ready.with);
    const without = trials.flatMap((t) => t.ready.without);
    return {
      n,
      net_ratio: round(median(withNet) / median(without)),
      net_ready_ms: spread(withNet),
      plain_ready_ms: spread(without),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
      namespaces,
      make_ms: round(median(trials.map((t) => t.make_ms))),
      remove_ms: round(median(trials.map((t) => t.remove_ms))),
      leaked: trials.reduce((sum, t) => sum + t.leaked, 0),
    };
  },
};
