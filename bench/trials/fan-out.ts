import { Engine } from '../../src/main/engine.js';
import type { Bench, Parameters } from '../bench.js';
import { cpuMs, pssKib } from '../host.js';
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

const trial = async ({ n, idle_secs }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true });
  try {
    const warming = performance.now();
    await engine.warm(BENCH_TAG, { firstEval: FIRST_EVAL });
    const template_ms = performance.now() - warming;
    const { pids, ...hot } = await forkOnce(engine, n, false);
    await pause(1);
    const before = pids.map(cpuMs).reduce((a, b) => a + b, 0);
    await pause(Number(idle_secs));
    const used = pids.map(cpuMs).reduce((a, b) => a + b, 0) - before;
    await engine.kill(engine.sandboxes);
    const { fork_us: _, pids: __, ...cold } = await forkOnce(engine, Math.min(n, COLD_MAX), true);
    const idle_cpu_percent = used / n / Number(idle_secs) / 10;
    return { hot: { ...hot, idle_cpu_percent, template_ms }, cold, cold_n: Math.min(n, COLD_MAX) };
  } finally {
    await engine.close();
  }
};

const pause = (secs: number) => new Promise((resolve) => setTimeout(resolve, secs * 1000));

export const fanOut: Bench<Trial> = {
  name: 'fan-out',
  description:
    'Fork n children from a resident, fully warmed template. ready_ms: from the request until the last child has taken its ' +
    'identity and answered numpy.zeros(5).tolist(), planning and sockets included; the template is there before. fork_ms: the ' +
    'fork system call alone. The same answer from min(n, 10) cold restores in the same process; ratio: cold over hot, ' +
    'wall-clock per child. A wrong or missing answer counts as failed.',
  full: { n: 100, trials: 7, idle_secs: 10 },
  smoke: { n: 3, trials: 1, idle_secs: 1 },
  trial,
  summarise: (trials, { n }) => {
    const side = (pick: (t: Trial) => Side, count: number) => ({
      n: count,
      ready_ms: round(median(trials.map((t) => pick(t).ready_ms))),
      child_ready_ms: spread(trials.flatMap((t) => pick(t).child_ready_ms)),
      cpu_ms_per_child: round(mean(trials.flatMap((t) => pick(t).cpu_ms))),
      pss_kib_per_child: round(median(trials.flatMap((t) => pick(t).pss_kib))),
      failed: trials.reduce((sum, t) => sum + pick(t).failed, 0),
    });
    const cold = side((t) => t.cold, trials[0]?.cold_n ?? 0);
    const perChild = (pick: (t: Trial) => Side, count: (t: Trial) => number) =>
      trials.map((t) => pick(t).ready_ms / count(t));
    const ratios = perChild(
      (t) => t.cold,
      (t) => t.cold_n,
    ).map(
      (c, i) =>
        c /
        (perChild(
          (t) => t.hot,
          () => n,
        )[i] as number),
    );
    const hot = side((t) => t.hot, n);
    return {
      ...hot,
      mode: 'hot-fork',
      fork_ms: round(median(trials.flatMap((t) => t.hot.fork_us)) / 1000),
      idle_cpu_percent_per_child: round(median(trials.map((t) => t.hot.idle_cpu_percent))),
      template_ms: round(median(trials.map((t) => t.hot.template_ms))),
      failed: hot.failed + cold.failed,
      cold,
      ratio: round(median(ratios)),
    };
  },
};

const mean = (values: number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
