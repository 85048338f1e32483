import { readdirSync } from 'node:fs';
import { Engine } from '../../src/main/engine.js';
import { Networks } from '../../src/main/network/networks.js';
import { linkNames } from '../../src/net/route.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, CARD_TAG, ensureParent, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round, spread } from '../stats.js';

interface Trial {
  with: number[];
  without: number[];
  failed: number;
  make_ms: number;
  remove_ms: number;
  /** Links and descriptors that were not there before the namespaces were made. */
  leaked: number;
}

const NOTHING = { allow: [], allowDomains: [] };

/** One of each, `rounds` times: what the machine does meanwhile befalls both. */
const fanOuts = async (n: number, rounds: number): Promise<Pick<Trial, 'with' | 'without' | 'failed'>> => {
  const engine = new Engine({ resident: true });
  const ready = { with: [] as number[], without: [] as number[] };
  let failed = 0;
  try {
    for (const tag of [BENCH_TAG, CARD_TAG]) {
      const { snapshot } = await engine.warm(tag, { firstEval: FIRST_EVAL });
      // See fan-out.ts.
      while (snapshot?.memory.server !== undefined) await pause(20);
    }
    for (let i = 0; i < rounds; i++) {
      for (const which of i % 2 === 0 ? (['with', 'without'] as const) : (['without', 'with'] as const)) {
        const isWith = which === 'with';
        // Made in advance, as a pool is.
        if (isWith) await engine.networks.fill(n);
        const request = { tag: isWith ? CARD_TAG : BENCH_TAG, n, firstEval: FIRST_EVAL };
        const made = await engine.fork(isWith ? { ...request, network: NOTHING } : request);
        ready[which].push(made.ready_ms);
        const { sandboxes, failures, firstResults } = made;
        failed += failures.length;
        failed += sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
        await engine.kill(sandboxes);
      }
    }
    return { ...ready, failed };
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
    const withNet = trials.flatMap((t) => t.with);
    const without = trials.flatMap((t) => t.without);
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
