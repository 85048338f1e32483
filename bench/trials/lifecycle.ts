import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round, spread } from '../stats.js';

interface Trial {
  forks: number;
  forks_per_s: number;
  noticed_ms: number[];
  leaked: Record<string, number>;
  failed: number;
}

const BATCH = 50;
/** A line of progress for so many forks. */
const TOLD = 500;

/** What a child owns in the engine, and what the template and the engine use of memory. */
const census = (template: number): Record<string, number> => {
  const links = readdirSync('/proc/self/fd').map((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '';
    }
  });
  const status = (pid: number | 'self', key: string) =>
    Number(new RegExp(`^${key}:\\s+(\\d+)`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
  return {
    descriptors: links.filter((link) => /^socket:|pidfd|memfd|forkd-fork/.test(link)).length,
    template_descriptors: readdirSync(`/proc/${template}/fd`).length,
    template_kib: status(template, 'RssAnon'),
    children: readFileSync(`/proc/self/task/${process.pid}/children`, 'utf8').trim().split(/\s+/).length,
  };
};

const killOne = async (sandbox: Sandbox): Promise<number> => {
  const began = performance.now();
  process.kill(sandbox.vmm.pid, 'SIGKILL');
  await sandbox.ended;
  return performance.now() - began;
};

const trial = async ({ n }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true });
  const hold = setInterval(() => undefined, 60_000);
  try {
    const template = await engine.warm(BENCH_TAG, { firstEval: FIRST_EVAL });
    const pid = template.lanes[0]?.vm.vmm.pid ?? 0;
    const noticed_ms: number[] = [];
    let failed = 0;
    const round_ = async (count: number) => {
      const { sandboxes, failures, firstResults } = await engine.fork({
        tag: BENCH_TAG,
        n: count,
        firstEval: FIRST_EVAL,
      });
      failed +=
        failures.length + sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
      const [first, ...rest] = sandboxes;
      if (first) noticed_ms.push(await killOne(first));
      await engine.kill(rest);
    };
    await round_(BATCH);
    const before = census(pid);
    const began = performance.now();
    for (let made = 0; made < n; made += BATCH) {
      if (made > 0 && made % TOLD === 0) process.stderr.write(`${made} of ${n} forks, ${failed} failed\n`);
      await round_(Math.min(BATCH, n - made));
    }
    const seconds = (performance.now() - began) / 1000;
    await new Promise((resolve) => setTimeout(resolve, 500));
    const after = census(pid);
    const leaked = Object.fromEntries(Object.entries(after).map(([key, value]) => [key, value - (before[key] ?? 0)]));
    return { forks: n, forks_per_s: n / seconds, noticed_ms, leaked, failed };
  } finally {
    clearInterval(hold);
    await engine.close();
  }
};

export const lifecycle: Bench<Trial> = {
  name: 'lifecycle',
  description:
    'Fork, ask and kill n children, 50 at a time. death_noticed_ms: from a kill -9 of one until the engine has reaped it. leaked: ' +
    'descriptors, processes and template memory at the end less those after the first 50.',
  full: { n: 10_000, trials: 1 },
  smoke: { n: 10, trials: 1 },
  trial,
  summarise: (trials) => ({
    forks: trials.reduce((sum, t) => sum + t.forks, 0),
    forks_per_s: round(median(trials.map((t) => t.forks_per_s))),
    death_noticed_ms: spread(trials.flatMap((t) => t.noticed_ms)),
    leaked: trials.at(-1)?.leaked ?? {},
    failed: trials.reduce((sum, t) => sum + t.failed, 0),
  }),
};
