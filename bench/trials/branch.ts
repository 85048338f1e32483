import { Engine } from '../../src/main/engine.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round, spread } from '../stats.js';

interface Trial {
  idle_ms: number[];
  dirtying_ms: number[];
  total_ms: number[];
  dirty_mib_per_s: number;
  failed: number;
}

/** Writes a page's first byte over and over at a steady pace, from a thread of the warm interpreter; counts what it wrote. */
const DIRTY = `
import builtins, threading, time
def dirty(rate_mib, size_mib):
    pages = size_mib * 256
    data = numpy.zeros(size_mib << 20, numpy.uint8)
    builtins.dirtied = at = 0
    builtins.dirty_stop = False
    began = time.monotonic()
    while not builtins.dirty_stop:
        due = int((time.monotonic() - began) * rate_mib * 256) - builtins.dirtied
        if due <= 0:
            time.sleep(0.005)
            continue
        due = min(due, 1024, pages - at)
        data[at * 4096:(at + due) * 4096:4096] += 1
        builtins.dirtied += due
        at = (at + due) % pages
thread = threading.Thread(target=dirty, args=(RATE, SIZE), daemon=True)
builtins.dirty_began = time.monotonic()
thread.start()
`;

const WORKING_SET_MIB = 64;

/** Between branches: the source runs, and dirties again what the branch before shared. */
const PAUSE_BETWEEN_MS = 100;

const trial = async ({ n, rate_mib }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true });
  try {
    const { sandboxes } = await engine.fork({ tag: BENCH_TAG, n: 1, firstEval: FIRST_EVAL });
    const id = sandboxes[0]?.id ?? '';
    const result: Trial = { idle_ms: [], dirtying_ms: [], total_ms: [], dirty_mib_per_s: 0, failed: 0 };
    const branch = async (into: number[]) => {
      const began = performance.now();
      const { template, pause_us } = await engine.branch(id);
      const { sandboxes: made, firstResults } = await engine.forkFrom(template, { n: 1, firstEval: FIRST_EVAL });
      result.total_ms.push(performance.now() - began);
      into.push(pause_us / 1000);
      const right =
        firstResults.get(1)?.result === FIRST_ANSWER && (await engine.eval(id, FIRST_EVAL)).result === FIRST_ANSWER;
      if (!right) result.failed++;
      await engine.kill(made);
      await engine.retire(template);
      await new Promise((resolve) => setTimeout(resolve, PAUSE_BETWEEN_MS));
    };
    for (let i = 0; i < n; i++) await branch(result.idle_ms);
    await engine.eval(id, DIRTY.replace('RATE', String(rate_mib)).replace('SIZE', String(WORKING_SET_MIB)));
    await new Promise((resolve) => setTimeout(resolve, 1000));
    for (let i = 0; i < n; i++) await branch(result.dirtying_ms);
    const rate = await engine.eval(id, 'import time; dirtied / 256 / (time.monotonic() - dirty_began)');
    result.dirty_mib_per_s = Number(rate.result ?? 0);
    if (!(result.dirty_mib_per_s > 0)) result.failed++;
    return result;
  } finally {
    await engine.close();
  }
};

export const branch: Bench<Trial> = {
  name: 'branch',
  description:
    'Branch a running child: how long it stands still (from the first thread that is stopped to the last that goes on, by the ' +
    'shim), with an idle guest and with one that keeps dirtying memory at rate_mib MiB/s over 64 MiB; total_ms: from the request ' +
    'until a child of the branch has taken its identity and answered. A wrong answer of either side counts as failed.',
  full: { n: 50, trials: 3, rate_mib: 50 },
  smoke: { n: 2, trials: 1, rate_mib: 5 },
  trial,
  summarise: (trials, { n }) => ({
    n,
    pause_ms: spread(trials.flatMap((t) => t.idle_ms)),
    idle: spread(trials.flatMap((t) => t.idle_ms)),
    dirtying: spread(trials.flatMap((t) => t.dirtying_ms)),
    dirty_mib_per_s: round(median(trials.map((t) => t.dirty_mib_per_s))),
    total_ms: spread(trials.flatMap((t) => t.total_ms)),
    failed: trials.reduce((sum, t) => sum + t.failed, 0),
  }),
};
