import { meminfo } from '../../src/main/host/resources.js';
import { Engine } from '../../src/main/engine.js';
import type { Bench, Parameters } from '../bench.js';
import { cpuMs, pssKib } from '../host.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round } from '../stats.js';

interface Trial {
  ready_ms: number;
  pss_kib: number;
  available_kib: number;
  idle_cpu_percent: number;
  failed: number;
}

const sum = (values: number[]) => values.reduce((a, b) => a + b, 0);

const trial = async ({ n, idle_secs, eager }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true, eager: eager === true });
  try {
    await engine.warm(BENCH_TAG, { firstEval: FIRST_EVAL });
    const before = meminfo('MemAvailable');
    const { sandboxes, failures, firstResults, ready_ms } = await engine.fork({
      tag: BENCH_TAG,
      n,
      firstEval: FIRST_EVAL,
    });
    await new Promise((resolve) => setTimeout(resolve, 1000));
    const available_kib = (before - meminfo('MemAvailable')) / 1024;
    const pids = sandboxes.map((s) => s.vmm.pid);
    const pss_kib = sum(pids.map(pssKib));
    const cpu = sum(pids.map(cpuMs));
    await new Promise((resolve) => setTimeout(resolve, Number(idle_secs) * 1000));
    const idle_cpu_percent = (sum(pids.map(cpuMs)) - cpu) / Number(idle_secs) / 10;
    const wrong = sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
    return { ready_ms, pss_kib, available_kib, idle_cpu_percent, failed: failures.length + wrong };
  } finally {
    await engine.close();
  }
};

export const density: Bench<Trial> = {
  name: 'density',
  description:
    'Memory of n children that have each answered one eval: proportional set size (pss_kib_per_child), and how much less memory ' +
    'the host has available (available_kib_per_child: page tables, kernel objects and everything else included). Then their ' +
    'processor time while idle.',
  full: { n: 1000, trials: 2, idle_secs: 10 },
  smoke: { n: 4, trials: 1, idle_secs: 1 },
  trial,
  summarise: (trials, { n }) => ({
    n,
    ready_ms: round(median(trials.map((t) => t.ready_ms))),
    pss_kib_per_child: round(median(trials.map((t) => t.pss_kib)) / n),
    available_kib_per_child: round(median(trials.map((t) => t.available_kib)) / n),
    idle_cpu_percent_per_child: round(median(trials.map((t) => t.idle_cpu_percent)) / n),
    failed: sum(trials.map((t) => t.failed)),
  }),
};
