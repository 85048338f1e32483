import { setTimeout as pause } from 'node:timers/promises';
import { Engine } from '../../src/main/engine.js';
import type { Bench, Parameters } from '../bench.js';
import { cpuMs, pssKib } from '../host.js';
import { warmWhole } from '../in-turns.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round, spread } from '../stats.js';

interface Side {
  ready_ms: number;
  child_ready_ms: number[];
  cpu_ms: number[];
  pss_kib: number[];
  failed: number;
}

interface Trial {
  hot: Side & { fork_us: number[]; idle_cpu_percent: number; template_ms: number };
  cold: Side;
  cold_n: number;
  /** Of children that were forked ahead; absent when the parameter `spares` is 0. */
  ahead?: Side & { prepare_ms: number };
}

/** Cold children are restored in the same run for the ratio; each costs as much as the last, so a few tell. */
const COLD_MAX = 10;

const forkOnce = async (
  engine: Engine,
  n: number,
  cold: boolean,
): Promise<Side & { fork_us: number[]; pids: number[] }> => {
  const { sandboxes, failures, firstResults, ready_ms, forkUs } = await engine.fork({
    tag: BENCH_TAG,
    n,
    cold,
    firstEval: FIRST_EVAL,
  });
  const wrong = sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
  const pids = sandboxes.map((s) => s.vmm.pid);
  return {
    ready_ms,
    child_ready_ms: sandboxes.flatMap(({ times: t }) => (t ? [t.spawn_ms + t.load_ms + t.first_answer_ms] : [])),
    cpu_ms: pids.map(cpuMs),
    pss_kib: pids.map(pssKib),
    failed: failures.length + wrong,
    fork_us: forkUs,
    pids,
  };
};

/** The same fan-out from spares that have rested for a second: only what is done from the request on counts. */
const forkAhead = async (engine: Engine, n: number): Promise<Side & { prepare_ms: number }> => {
  const template = await engine.warm(BENCH_TAG, { firstEval: FIRST_EVAL });
  const preparing = performance.now();
  const spares = template.keepSpares({ count: n, pool: engine.pool, firstEval: FIRST_EVAL });
  await spares.fill();
  const prepare_ms = performance.now() - preparing;
  const missing = n - spares.size;
  await pause(1000);
  const before = sum(spares.pids.map(cpuMs));
  const { fork_us, pids, ...side } = await forkOnce(engine, n, false);
  const used = sum(side.cpu_ms) - before;
  return { ...side, cpu_ms: pids.map(() => used / n), failed: side.failed + missing + fork_us.length, prepare_ms };
};

const sum = (values: number[]): number => values.reduce((a, b) => a + b, 0);

const trial = async ({ n, idle_secs, spares, eager }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true, eager: eager === true });
  try {
    const warming = performance.now();
    await warmWhole(engine, BENCH_TAG);
    const template_ms = performance.now() - warming;
    const { pids, ...hot } = await forkOnce(engine, n, false);
    await pause(1000);
    const before = sum(pids.map(cpuMs));
    await pause(Number(idle_secs) * 1000);
    const used = sum(pids.map(cpuMs)) - before;
    await engine.kill(engine.sandboxes);
    const { fork_us: _, pids: __, ...cold } = await forkOnce(engine, Math.min(n, COLD_MAX), true);
    await engine.kill(engine.sandboxes);
    const ahead = spares ? { ahead: await forkAhead(engine, n) } : {};
    const idle_cpu_percent = used / n / Number(idle_secs) / 10;
    return {
      ...ahead,
      hot: { ...hot, idle_cpu_percent, template_ms },
      cold,
      cold_n: Math.min(n, COLD_MAX),
    };
  } finally {
    await engine.close();
  }
};

export const fanOut: Bench<Trial> = {
  name: 'fan-out',
  description:
    'Fork n children from a resident, fully warmed template. ready_ms: from the request until the last child has taken its ' +
    'identity and answered numpy.zeros(5).tolist(), planning and sockets included; the template is there before, its memory loaded. fork_ms: the ' +
    'fork system call alone. The same answer from min(n, 10) cold restores in the same process; ratio: cold over hot, ' +
    'wall-clock per child. spares: the same again from children that were forked ahead and have rested for a second; making them ' +
    '(prepare_ms each) is not in their ready_ms. A wrong or missing answer counts as failed.',
  full: { n: 100, trials: 7, idle_secs: 10, spares: 1, eager: false },
  smoke: { n: 3, trials: 1, idle_secs: 1, spares: 1, eager: false },
  trial,
  plot: (trials, { n }) => ({
    title: `fan-out of ${n}, hot: each child, from its fork's request to its answer`,
    label: 'ms until ready',
    values: trials.flatMap((t) => t.hot.child_ready_ms),
  }),
  summarise: (trials, { n, eager }) => {
    const side = (pick: (t: Trial) => Side, count: number) => ({
      n: count,
      ready_ms: round(median(trials.map((t) => pick(t).ready_ms))),
      child_ready_ms: spread(trials.flatMap((t) => pick(t).child_ready_ms)),
      cpu_ms_per_child: round(mean(trials.flatMap((t) => pick(t).cpu_ms))),
      pss_kib_per_child: round(median(trials.flatMap((t) => pick(t).pss_kib))),
      failed: trials.reduce((sum, t) => sum + pick(t).failed, 0),
    });
    const cold = side((t) => t.cold, trials[0]?.cold_n ?? 0);
    const ratio = (pick: (t: Trial) => Side) =>
      round(median(trials.map((t) => t.cold.ready_ms / t.cold_n / (pick(t).ready_ms / n))));
    const ahead = trials.flatMap((t) => t.ahead ?? []);
    const aheadOf = (t: Trial) => t.ahead as Side;
    const hot = side((t) => t.hot, n);
    return {
      ...hot,
      mode: 'hot-fork',
      eager,
      fork_ms: round(median(trials.flatMap((t) => t.hot.fork_us)) / 1000),
      idle_cpu_percent_per_child: round(Math.max(0, median(trials.map((t) => t.hot.idle_cpu_percent)))),
      template_ms: round(median(trials.map((t) => t.hot.template_ms))),
      failed: hot.failed + cold.failed + sum(ahead.map(({ failed }) => failed)),
      cold,
      ratio: ratio((t) => t.hot),
      ...(ahead.length === trials.length
        ? {
            spares: {
              ...side(aheadOf, n),
              prepare_ms: round(median(ahead.map(({ prepare_ms }) => prepare_ms / n))),
              ratio: ratio(aheadOf),
            },
          }
        : {}),
    };
  },
};

const mean = (values: number[]): number => sum(values) / values.length;
