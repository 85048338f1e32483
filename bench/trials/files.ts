import { createHash } from 'node:crypto';
import { Engine } from '../../src/main/engine.js';
import type { Sandbox } from '../../src/main/sandbox/sandbox.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG } from '../parent.js';
import { cpuSeconds, Resident } from '../process.js';
import { median, round } from '../stats.js';

interface Trial {
  up_mb_per_s: number;
  up_mb_per_cpu_s: number;
  down_mb_per_s: number;
  down_mb_per_cpu_s: number;
  growth_mib: number;
  failed: number;
}

const MIB = 2 ** 20;
const PATH = '/root/file';

/** Not the same from part to part, and cheap to make. */
const block = Buffer.alloc(MIB);
for (let i = 0; i < block.length; i += 4) block.writeUInt32LE(Math.imul(i, 2654435761) >>> 0, i);

const up = async (child: Sandbox, mib: number): Promise<string> => {
  const stream = child.stream({ action: 'write_file', path: PATH });
  const hash = createHash('sha256');
  for (let i = 0; i < mib; i++) {
    block.writeUInt32LE(i);
    hash.update(block);
    await stream.write(block);
  }
  stream.end();
  await stream.ended;
  return hash.digest('hex');
};

const down = async (child: Sandbox, onPiece: () => void): Promise<string> => {
  const hash = createHash('sha256');
  for await (const { data } of child.stream({ action: 'read_file', path: PATH })) {
    hash.update(data);
    onPiece();
  }
  return hash.digest('hex');
};

const trial = async ({ mib }: Parameters): Promise<Trial> => {
  const engine = new Engine({ resident: true });
  try {
    const { sandboxes } = await engine.fork({ tag: BENCH_TAG, n: 1 });
    const [child] = sandboxes as [Sandbox];
    const pids = [process.pid, child.vmm.pid];
    // The code of the way through the guest is translated once.
    await up(child, 2);
    await down(child, () => undefined);
    const memory = new Resident();
    const timed = async (work: () => Promise<string>) => {
      const [cpu, began] = [cpuSeconds(pids), performance.now()];
      const sum = await work();
      return { sum, s: (performance.now() - began) / 1000, cpu: cpuSeconds(pids) - cpu };
    };
    const sent = await timed(() => up(child, mib as number));
    memory.look();
    const got = await timed(() => down(child, memory.look));
    const mb = ((mib as number) * MIB) / 1e6;
    return {
      up_mb_per_s: mb / sent.s,
      up_mb_per_cpu_s: mb / sent.cpu,
      down_mb_per_s: mb / got.s,
      down_mb_per_cpu_s: mb / got.cpu,
      growth_mib: memory.growthMib(),
      failed: sent.sum === got.sum ? 0 : 1,
    };
  } finally {
    await engine.close();
  }
};

export const files: Bench<Trial> = {
  name: 'files',
  description:
    'A file of mib MiB into a child and out of it again, through the agent, hashed on the way; also for each second of processor time ' +
    'of the VM and this process, and how much this process grows at most. Another content on the way back counts as failed.',
  full: { n: 1, trials: 3, mib: 100 },
  smoke: { n: 1, trials: 1, mib: 3 },
  trial,
  summarise: (trials, { mib }) => {
    const middle = (key: keyof Trial) => round(median(trials.map((one) => one[key])));
    return {
      mib,
      up_mb_per_s: middle('up_mb_per_s'),
      up_mb_per_cpu_s: middle('up_mb_per_cpu_s'),
      down_mb_per_s: middle('down_mb_per_s'),
      down_mb_per_cpu_s: middle('down_mb_per_cpu_s'),
      growth_mib: middle('growth_mib'),
      failed: trials.reduce((sum, one) => sum + one.failed, 0),
    };
  },
};
