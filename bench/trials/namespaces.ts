import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as pause } from 'node:timers/promises';
import { Engine } from '../../src/main/engine.js';
import { Networks, removeUnusedHostRules } from '../../src/main/network/networks.js';
import { linkNames } from '../../src/net/route.js';
import { LINK_PREFIX } from '../../src/net/ruleset.js';
import type { Bench, Parameters } from '../bench.js';
import { median, round } from '../stats.js';

interface Trial {
  make_ms: number;
  descriptors: number;
  remove_ms: number;
  killed_remove_ms: number;
  /** Of those that were made, links and descriptors that stayed. */
  leaked: number;
}

const NOTHING = { allow: [], allowDomains: [] };
/** The kernel removes them in its own time; longer than this is never. */
const GONE_MS = 60_000;

const descriptors = (): number => readdirSync('/proc/self/fd').length;

/** Waits until none of these links is left; how many are. Others on this host may make and remove theirs. */
const gone = async (numbers: number[]): Promise<number> => {
  const ours = new Set(numbers.map((number) => LINK_PREFIX + number));
  const left = () => linkNames().filter((name) => ours.has(name)).length;
  for (const end = performance.now() + GONE_MS; left() > 0 && performance.now() < end; ) await pause(5);
  return left();
};

const trial = async ({ n: count }: Parameters): Promise<Trial> => {
  const engine = new Engine();
  const networks = new Networks(engine.pool);
  try {
    // Workers open what they keep.
    const first = await networks.take(engine.pool.width, NOTHING);
    for (const one of first) one.end();
    await gone(first.map(({ number }) => number));
    const before = descriptors();
    const began = performance.now();
    const taken = await networks.take(count, NOTHING);
    const made = performance.now();
    const held = descriptors() - before;
    for (const one of taken) one.end();
    const left = await gone(taken.map(({ number }) => number));
    const ended = performance.now();
    const killed = await killHolder(count);
    return {
      make_ms: (made - began) / count,
      descriptors: held,
      remove_ms: (ended - made) / count,
      killed_remove_ms: killed.ms / count,
      leaked: left + killed.left + descriptors() - before,
    };
  } finally {
    await networks.close();
    await engine.close();
    removeUnusedHostRules();
  }
};

/** Of a process that is killed with all that it has made, nothing but the kernel is left to remove it. */
const killHolder = async (count: number): Promise<{ ms: number; left: number }> => {
  const holder = spawn(process.execPath, [join(import.meta.dirname, '../hold-networks.js'), String(count)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exit = once(holder, 'close');
  const early = exit.then(() => {
    throw new Error('the process that was to hold networks has ended');
  });
  const [line] = (await Promise.race([once(createInterface(holder.stdout), 'line'), early])) as [string];
  const began = performance.now();
  holder.kill('SIGKILL');
  const left = await gone(JSON.parse(line) as number[]);
  await exit;
  return { ms: performance.now() - began, left };
};

export const namespaces: Bench<Trial> = {
  name: 'namespaces',
  description:
    'Make n namespaces, each with its tap, link, rules and sockets, and remove them, then once more by kill -9 of a process that made as many: milliseconds ' +
    'for each, descriptors of all, and the links and descriptors that are left. Needs root.',
  full: { n: 1000, trials: 3 },
  smoke: { n: 10, trials: 1 },
  trial,
  summarise: (trials, { n }) => ({
    n,
    make_ms: round(median(trials.map((t) => t.make_ms))),
    descriptors: Math.max(...trials.map((t) => t.descriptors)),
    remove_ms: round(median(trials.map((t) => t.remove_ms))),
    killed_remove_ms: round(median(trials.map((t) => t.killed_remove_ms))),
    leaked: trials.reduce((sum, t) => sum + t.leaked, 0),
    failed: 0,
  }),
};
