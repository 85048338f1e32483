import { join } from 'node:path';
import { Controller } from '../../src/client/index.js';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Bench, Parameters } from '../bench.js';
import { BenchDaemon } from '../daemon.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { cpuSeconds, Resident } from '../process.js';
import { median, round } from '../stats.js';

interface Trial {
  mb_per_s: number;
  mb_per_cpu_s: number;
  all_mb_per_s: number;
  growth_mib: number;
  all_growth_mib: number;
  daemon_mb_per_s: number;
  daemon_growth_mib: number;
  daemon_all_mb_per_s: number;
  daemon_all_growth_mib: number;
  eval_alone_ms: number;
  eval_beside_flood_ms: number;
  failed: number;
}

const MIB = 2 ** 20;
const EVALS = 20;
/** Before the clock counts: the code of the way through the guest is translated once. */
const WARM_MIB = 4;

const zeros = async (child: Sandbox, mib: number, onPiece: () => void = () => undefined): Promise<boolean> => {
  const stream = child.stream({ action: 'run', args: ['head', '-c', String(mib * MIB), '/dev/zero'] });
  let bytes = 0;
  for await (const { data } of stream) {
    bytes += data.length;
    onPiece();
  }
  return bytes === mib * MIB && (await stream.ended).exit_code === 0;
};

/** How often it is looked at what a daemon has. */
const LOOK_MS = 20;

/** The same by a client of a daemon, which is another process: its WebSockets lie between. */
const throughDaemon = async (n: number, mib: number, childMib: number) => {
  const daemon = await BenchDaemon.start(['--log-level', 'warn']);
  const controller = new Controller({ baseUrl: `unix:${join(daemon.root, 'd.sock')}`, timeoutMs: 120_000 });
  let failed = 0;
  const hear = async (id: string, count: number): Promise<void> => {
    let bytes = 0;
    const stream = controller.runCommand(id, ['head', '-c', String(count * MIB), '/dev/zero']);
    for await (const { data } of stream) bytes += data.length;
    if (bytes !== count * MIB || (await stream.ended).exit_code !== 0) failed++;
  };
  /** In MB a second, and by how much the daemon grew at most. */
  const timed = async (all: number, work: () => Promise<unknown>) => {
    const before = daemon.state().anon_kib;
    let most = before;
    const timer = setInterval(() => {
      most = Math.max(most, daemon.state().anon_kib);
    }, LOOK_MS);
    const began = performance.now();
    await work();
    clearInterval(timer);
    return { mb_per_s: (all * MIB) / 1e3 / (performance.now() - began), growth_mib: (most - before) / 1024 };
  };
  try {
    const ids = (await controller.spawnSandboxes({ snapshotTag: BENCH_TAG, n })).map(({ id }) => id);
    const [first] = ids as [string];
    await hear(first, WARM_MIB);
    const one = await timed(mib, () => hear(first, mib));
    const all = await timed(ids.length * childMib, () => Promise.all(ids.map((id) => hear(id, childMib))));
    return { one, all, failed };
  } finally {
    await controller.close();
    await daemon.stop();
  }
};

const inProcess = async ({ n, mib, childMib }: Parameters) => {
  const engine = new Engine({ resident: true });
  try {
    const { sandboxes, failures } = await engine.fork({ tag: BENCH_TAG, n, firstEval: FIRST_EVAL });
    const [child] = sandboxes as [Sandbox];
    let failed = failures.length;
    const check = (isRight: boolean) => {
      if (!isRight) failed++;
    };
    check(await zeros(child, WARM_MIB));
    const memory = new Resident();

    const cpu = cpuSeconds([process.pid, child.vmm.pid]);
    let began = performance.now();
    check(await zeros(child, mib as number, memory.look));
    const one = { s: (performance.now() - began) / 1000, cpu: cpuSeconds([process.pid, child.vmm.pid]) - cpu };
    const growth_mib = memory.growthMib();

    const evalMs = async (): Promise<number> => {
      const took: number[] = [];
      for (let i = 0; i < EVALS; i++) {
        const at = performance.now();
        check((await engine.eval(child.id, FIRST_EVAL)).result === FIRST_ANSWER);
        took.push(performance.now() - at);
      }
      return median(took);
    };
    const eval_alone_ms = await evalMs();
    const flood = child.stream({ action: 'run', args: ['yes'] });
    await flood.opened;
    const eval_beside_flood_ms = await evalMs();
    flood.close();
    await flood.ended;

    const all = new Resident();
    began = performance.now();
    await Promise.all(sandboxes.map(async (one) => check(await zeros(one, childMib as number, all.look))));
    const all_s = (performance.now() - began) / 1000;
    const mb = ((mib as number) * MIB) / 1e6;
    return {
      mb_per_s: mb / one.s,
      mb_per_cpu_s: mb / one.cpu,
      all_mb_per_s: (sandboxes.length * (childMib as number) * MIB) / 1e6 / all_s,
      growth_mib,
      all_growth_mib: all.growthMib(),
      eval_alone_ms,
      eval_beside_flood_ms,
      failed,
    };
  } finally {
    await engine.close();
  }
};

const trial = async (parameters: Parameters): Promise<Trial> => {
  const direct = await inProcess(parameters);
  const { one, all, failed } = await throughDaemon(parameters.n, Number(parameters.mib), Number(parameters.childMib));
  return {
    ...direct,
    daemon_mb_per_s: one.mb_per_s,
    daemon_growth_mib: one.growth_mib,
    daemon_all_mb_per_s: all.mb_per_s,
    daemon_all_growth_mib: all.growth_mib,
    failed: direct.failed + failed,
  };
};

export const execStream: Bench<Trial> = {
  name: 'exec-stream',
  description:
    'Output of a program in a child, heard while it runs: mib MiB of zeros from one child (also for each second of processor time of ' +
    'its VM and this process), then childMib from each of n children at once, and how much this process grows at most meanwhile. ' +
    'daemon_*: the same through a daemon, and how much that grows. eval_*: the median eval, alone, and beside a program that floods and is not read. Missing bytes count as failed.',
  full: { n: 100, trials: 3, mib: 100, childMib: 2 },
  smoke: { n: 2, trials: 1, mib: 4, childMib: 1 },
  trial,
  summarise: (trials, { n, mib, childMib }) => {
    const middle = (key: keyof Trial) => round(median(trials.map((one) => one[key])));
    return {
      n,
      mib,
      child_mib: childMib,
      mb_per_s: middle('mb_per_s'),
      mb_per_cpu_s: middle('mb_per_cpu_s'),
      growth_mib: middle('growth_mib'),
      all_mb_per_s: middle('all_mb_per_s'),
      all_growth_mib: middle('all_growth_mib'),
      daemon_mb_per_s: middle('daemon_mb_per_s'),
      daemon_growth_mib: middle('daemon_growth_mib'),
      daemon_all_mb_per_s: middle('daemon_all_mb_per_s'),
      daemon_all_growth_mib: middle('daemon_all_growth_mib'),
      eval_alone_ms: middle('eval_alone_ms'),
      eval_beside_flood_ms: middle('eval_beside_flood_ms'),
      failed: trials.reduce((sum, one) => sum + one.failed, 0),
    };
  },
};
