import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Http } from '../../src/http/client.js';
import { Engine } from '../../src/main/engine.js';
import { pack } from '../../src/main/hub/pack.js';
import { pull } from '../../src/main/hub/pull.js';
import { pullLazy } from '../../src/main/hub/pull-lazy.js';
import type { Bench, Parameters } from '../bench.js';
import { BENCH_TAG, FIRST_ANSWER, FIRST_EVAL } from '../parent.js';
import { median, round } from '../stats.js';

const MIB = 1024 * 1024;

interface Trial {
  lazy_ms: number;
  full_ms: number;
  pack_bytes: number;
  /** Fetched by the time of the first answer. */
  lazy_bytes: number;
  failed: number;
}

/** From the first request to the first right answer of one of n children. */
const firstEval = async (
  n: number,
  url: URL,
  root: string,
  lazy: boolean,
): Promise<{ ms: number; bytes: number; failed: number }> => {
  const engine = new Engine({ snapshotRoot: root });
  const http = new Http();
  try {
    await engine.driver();
    engine.pool.warm();
    const began = performance.now();
    if (lazy) await pullLazy(http, engine.store, { url });
    else await pull(http, engine.store, { url }, engine.pool);
    let ms = Number.NaN;
    const { sandboxes, firstResults, failures } = await engine.fork(
      { tag: BENCH_TAG, n, firstEval: FIRST_EVAL },
      {
        onReady: () => {
          if (Number.isNaN(ms)) ms = performance.now() - began;
        },
      },
    );
    const wrong = sandboxes.filter((s) => firstResults.get(s.birth.index)?.result !== FIRST_ANSWER).length;
    return { ms, bytes: statSync(join(root, BENCH_TAG, 'memory.layer')).blocks * 512, failed: failures.length + wrong };
  } finally {
    await http.close();
    await engine.close();
  }
};

/** So that the working set is known and travels in the pack. */
const forkOnce = async (n: number): Promise<void> => {
  const engine = new Engine();
  try {
    await engine.fork({ tag: BENCH_TAG, n, firstEval: FIRST_EVAL });
  } finally {
    await engine.close();
  }
};

const trial = async ({ n, mbits, delay_ms }: Parameters): Promise<Trial> => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-bench-'));
  // Each run touches a little that the one before did not.
  for (let i = 0; i < 2; i++) await forkOnce(n);
  const engine = new Engine();
  const out = join(folder, 'bench.tar.zst');
  await pack(engine.store, { tag: BENCH_TAG, out });
  await engine.close();
  const link = spawn(
    process.execPath,
    [fileURLToPath(new URL('../link.js', import.meta.url)), out, String(mbits), String(delay_ms)],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  try {
    const [port] = (await once(link.stdout, 'data')) as [Buffer];
    const url = new URL(`http://127.0.0.1:${String(port).trim()}/bench`);
    const lazy = await firstEval(n, url, join(folder, 'lazy'), true);
    const full = await firstEval(n, url, join(folder, 'full'), false);
    return {
      lazy_ms: lazy.ms,
      full_ms: full.ms,
      pack_bytes: statSync(out).size,
      lazy_bytes: lazy.bytes,
      failed: lazy.failed + full.failed,
    };
  } finally {
    link.kill();
    rmSync(folder, { recursive: true });
  }
};

export const pullBench: Bench<Trial> = {
  name: 'pull',
  description:
    'A pack of the benchmark snapshot on a web server behind a link of 100 Mbit/s and 20 ms each way (smaller runs: a quicker one): from the first request to the ' +
    'first right answer of the first of n children to numpy.zeros(5).tolist(). lazy_first_eval_ms: `pull --lazy`, then fork; ' +
    'full_first_eval_ms: `pull`, then fork. The snapshot was forked once before it was packed.',
  full: { n: 2, trials: 3, mbits: 100, delay_ms: 20 },
  smoke: { n: 2, trials: 1, mbits: 1000, delay_ms: 1 },
  trial,
  summarise: (trials, { n }) => {
    const of = (key: keyof Trial) => median(trials.map((t) => t[key]));
    return {
      n,
      lazy_first_eval_ms: round(of('lazy_ms')),
      full_first_eval_ms: round(of('full_ms')),
      ratio: round(median(trials.map((t) => t.lazy_ms / t.full_ms))),
      pack_mib: round(of('pack_bytes') / MIB),
      lazy_layer_mib: round(of('lazy_bytes') / MIB),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
    };
  },
};
