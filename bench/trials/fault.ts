import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { faultCounts, faultLatenciesNs } from '../../src/contract/fault-stats.js';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import { compileFaulter, Faulter, makeImage, makeLayer, Served } from '../../test/native/faults.js';
import type { Bench, Parameters } from '../bench.js';
import { median, percentile, round } from '../stats.js';

const PAGES_PER_CHUNK = CHUNK_BYTES / 4096;
/** No chunk is taken over: what is measured is serving, not the host's scheduler. */
const PATIENCE_US = 60_000_000;

interface Trial {
  latencies_us: number[];
  chunks_per_s: number[];
  failed: number;
}

/** Every page of the image is touched by `threads` threads of one process, and served by as many workers. */
const run = async (program: string, layer: number, chunks: number, threads: number) => {
  const source = native.sourceOpen([layer]);
  const served = new Served(chunks);
  const serving = served.serve({ source }, threads, PATIENCE_US);
  const faulter = await new Faulter(program, served).join(serving);
  const began = process.hrtime.bigint();
  await faulter.must(`check 0 ${chunks * PAGES_PER_CHUNK} ${threads} 1`);
  const seconds = Number(process.hrtime.bigint() - began) / 1e9;
  await serving.close();
  faulter.kill();
  native.sourceClose(source);
  const { filled, failed } = faultCounts(served.stats);
  return { latencies_us: faultLatenciesNs(served.stats).map((ns) => ns / 1000), per_s: filled / seconds, failed };
};

const trial = async ({ chunks }: Parameters): Promise<Trial> => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-bench-'));
  try {
    const program = compileFaulter(folder);
    const image = makeImage(Number(chunks));
    const layer = makeLayer(image);
    native.fdClose(image);
    const one = await run(program, layer, Number(chunks), 1);
    const two = await run(program, layer, Number(chunks), 2);
    native.fdClose(layer);
    return {
      latencies_us: one.latencies_us,
      chunks_per_s: [one.per_s, two.per_s],
      failed: one.failed + two.failed,
    };
  } finally {
    rmSync(folder, { recursive: true });
  }
};

export const fault: Bench<Trial> = {
  name: 'fault',
  description:
    'The fault server, without any VM: a process touches every page of an image in a random order; chunks of 16 KiB come from an ' +
    'uncompressed layer in the page cache, verified. From a fault being read to its being answered, with one worker (p50_us, p99_us; pages of ' +
    'zeros included), and chunks filled a second with one and two workers (the touching process has as many threads, and compares every byte).',
  full: { n: 1, trials: 3, chunks: 2048 },
  smoke: { n: 1, trials: 1, chunks: 64 },
  trial,
  summarise: (trials, { chunks }) => {
    const latencies = trials.flatMap((t) => t.latencies_us);
    const perSecond = (workers: number) => round(median(trials.map((t) => t.chunks_per_s[workers - 1] ?? Number.NaN)));
    return {
      chunks,
      p50_us: round(percentile(latencies, 50)),
      p99_us: round(percentile(latencies, 99)),
      chunks_per_s_1: perSecond(1),
      chunks_per_s_2: perSecond(2),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
    };
  },
};
