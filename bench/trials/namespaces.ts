import { setTimeout as pause } from 'node:timers/promises';
import { readdirSync } from 'node:fs';
import { Engine } from '../../src/main/engine.js';
import { Networks } from '../../src/main/network/networks.js';
import { linkNames } from '../../src/net/route.js';
import type { Bench, Parameters } from '../bench.js';
import { median, round } from '../stats.js';

interface Trial {
  make_ms: number;
  remove_ms: number;
  /** Links and descriptors that were not there before the namespaces were made. */
  leaked: number;
}

const NOTHING = { allow: [], allowDomains: [] };

const trial = async ({ n: count }: Parameters): Promise<Trial> => {
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

export const namespaces: Bench<Trial> = {
  name: 'namespaces',
  description:
    'Make n namespaces, each with its tap, link, rules and sockets, and remove them: milliseconds for each, and the links and descriptors ' +
    'that are left. Needs root.',
  full: { n: 1000, trials: 3 },
  smoke: { n: 10, trials: 1 },
  trial,
  summarise: (trials, { n }) => ({
    n,
    make_ms: round(median(trials.map((t) => t.make_ms))),
    remove_ms: round(median(trials.map((t) => t.remove_ms))),
    leaked: trials.reduce((sum, t) => sum + t.leaked, 0),
    failed: 0,
  }),
};
