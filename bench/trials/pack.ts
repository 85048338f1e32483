import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  fsync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { Engine } from '../../src/main/engine.js';
import { findTool, installPackages } from '../../src/main/host/packages.js';
import { pack } from '../../src/main/hub/pack.js';
import { unpack } from '../../src/main/hub/unpack.js';
import { Store } from '../../src/main/store/store.js';
import type { Bench } from '../bench.js';
import { BENCH_TAG } from '../parent.js';
import { median, round } from '../stats.js';

const MIB = 1024 * 1024;

interface PlainTrial {
  v1_pack_ms: number;
  v1_unpack_ms: number;
  v1_bytes: number;
  failed: number;
}

interface Trial extends PlainTrial {
  pack_ms: number;
  unpack_ms: number;
  tar_pack_ms: number;
  tar_unpack_ms: number;
  write_ms: number;
  bytes: number;
  tar_bytes: number;
  content_bytes: number;
}

/** What anyone here writes, and reads again. */
const WARM_BYTES = 640 * MIB;

/**
 * Memory that a VM has not touched for seconds may have gone back to its host (free page reporting), and costs 3 ms a MiB when it is touched again: for
 * whoever comes first. Nobody is to pay it here.
 */
const warmMemory = (): void => {
  const path = join('/dev/shm', `forkd-bench-${process.pid}`);
  const fd = openSync(path, 'wx');
  rmSync(path);
  const part = Buffer.alloc(MIB, 1);
  for (let at = 0; at < WARM_BYTES; at += MIB) writeSync(fd, part, 0, MIB, at);
  closeSync(fd);
};

const timed = async (work: () => Promise<unknown>): Promise<number> => {
  warmMemory();
  const began = performance.now();
  await work();
  return performance.now() - began;
};

const sh = async (script: string): Promise<void> => {
  const [code] = await once(spawn('sh', ['-c', script], { stdio: ['ignore', 'ignore', 'inherit'] }), 'close');
  if (code !== 0) throw new Error(`'${script}' ended with exit code ${code}`);
};

const syncFile = (path: string): void => {
  const fd = openSync(path, 'r');
  fsyncSync(fd);
  closeSync(fd);
};

interface Plain {
  bytes: number;
  /** Without zeros, which unpacking leaves out too. */
  runs: { content: Buffer; offset: number }[];
}

const HOLE = Buffer.alloc(16 * 1024);

const plainOf = (path: string): Plain => {
  const all = readFileSync(path);
  const runs: Plain['runs'] = [];
  let begin = 0;
  for (let at = 0; at <= all.length; at += HOLE.length) {
    if (at < all.length && !all.subarray(at, at + HOLE.length).equals(HOLE.subarray(0, all.length - at))) continue;
    if (at > begin) runs.push({ content: all.subarray(begin, at), offset: begin });
    begin = at + HOLE.length;
  }
  if (begin < all.length) runs.push({ content: all.subarray(begin), offset: begin });
  return { bytes: all.length, runs };
};

/** What the disk can do: the bytes that unpacking writes, from memory into new files, each synced beside the next, and their folder. */
const plainWrite = async (folder: string, files: Plain[]): Promise<void> => {
  mkdirSync(folder);
  const fds: number[] = [];
  const syncing = files.map(({ bytes, runs }, i) => {
    const fd = openSync(join(folder, String(i)), 'w');
    fds.push(fd);
    ftruncateSync(fd, bytes);
    for (const { content, offset } of runs)
      for (let at = 0; at < content.length; at += MIB) {
        const part = content.subarray(at, at + MIB);
        writeSync(fd, part, 0, part.length, offset + at);
      }
    return sync(fd);
  });
  await Promise.all(syncing);
  for (const fd of fds) closeSync(fd);
  syncFile(folder);
};

const sync = promisify(fsync);

const trial = async (): Promise<Trial> => {
  if (findTool('zstd') === undefined) await installPackages(['zstd']);
  const folder = mkdtempSync(join(tmpdir(), 'forkd-bench-'));
  const engine = new Engine();
  try {
    const out = join(folder, 'ours.tar.zst');
    const theirs = join(folder, 'theirs.tar.zst');
    const m = engine.store.manifest(BENCH_TAG);
    const files = [
      ...readdirSync(engine.store.dir(BENCH_TAG)).map((name) => join(engine.store.dir(BENCH_TAG), name)),
      m.kernel.path,
      m.initrd.path,
      m.rootfs_digest.path,
    ];
    const list = files.map((path) => `'${path.slice(1)}'`).join(' ');
    const into = join(folder, 'tree');
    mkdirSync(into);
    // Once before the clock counts: the files are in the page cache for both. Nothing is kept from it: neither packing nor unpacking has a cache.
    await pack(engine.store, { tag: BENCH_TAG, out });
    rmSync(out);
    const pack_ms = await timed(() => pack(engine.store, { tag: BENCH_TAG, out }));
    const tar_pack_ms = await timed(async () => {
      await sh(`tar -C / -cf - ${list} | zstd -q -3 -T1 -o '${theirs}'`);
      syncFile(theirs);
    });
    // Before and after, so that what the disk does meanwhile befalls both; nothing is removed before the end, since that keeps the disk busy later.
    const plain = files.map(plainOf);
    const before_ms = await timed(() => plainWrite(join(folder, 'before'), plain));
    const store = new Store(join(folder, 'store'));
    let made: string[] = [];
    const unpack_ms = await timed(async () => {
      made = (await unpack(store, { path: out })).made;
    });
    const tar_unpack_ms = await timed(async () => {
      await sh(`zstd -q -dc '${theirs}' | tar -C '${into}' -xf -`);
      for (const path of files) syncFile(join(into, path));
    });
    const after_ms = await timed(() => plainWrite(join(folder, 'after'), plain));
    const write_ms = (before_ms + after_ms) / 2;
    const content_bytes = files.reduce((sum, path) => sum + statSync(path).size, 0);
    const [bytes, tar_bytes] = [statSync(out).size, statSync(theirs).size];
    const versionOne = await plainPack(engine.store, folder);
    const failed = (made.length === 1 ? 0 : 1) + versionOne.failed;
    return {
      pack_ms,
      unpack_ms,
      tar_pack_ms,
      tar_unpack_ms,
      write_ms,
      bytes,
      tar_bytes,
      content_bytes,
      ...versionOne,
      failed,
    };
  } finally {
    await engine.close();
    rmSync(folder, { recursive: true });
  }
};

/** The same in version 1, of which the root disk is a file beside the pack: whole memory, one stream. */
const plainPack = async (from: Store, folder: string): Promise<PlainTrial> => {
  const out = join(folder, 'v1', 'pack.tar.zst');
  mkdirSync(dirname(out));
  let sidecar = '';
  const v1_pack_ms = await timed(async () => {
    sidecar = (await pack(from, { tag: BENCH_TAG, out, version: 1 })).sidecar ?? '';
  });
  let made: string[] = [];
  const v1_unpack_ms = await timed(async () => {
    made = (await unpack(new Store(join(folder, 'v1-store')), { path: out })).made;
  });
  const v1_bytes = statSync(out).size + statSync(sidecar).size;
  return { v1_pack_ms, v1_unpack_ms, v1_bytes, failed: made.length === 1 ? 0 : 1 };
};

export const packBench: Bench<Trial> = {
  name: 'pack',
  description:
    'pack and unpack of the benchmark snapshot, beside `tar | zstd -3` and `zstd -d | tar -x` with one thread on the same files: each until its ' +
    'data is on the disk, sources in the page cache. pack_speedup and unpack_speedup are theirs over ours, size_ratio ours over theirs; ' +
    'write_ms is how long the bytes that unpacking writes take from memory to the disk, with its syncs, and unpack_over_write ours over it: before and ' +
    'after it in each trial. Unpacking checks every byte, tar none. ' +
    'v1_*: a pack of version 1 with its root disk, into an empty store too. ' +
    'Memory that the host may have taken back is touched before each clock starts. Neither has a cache; each unpack is the first of its process, into an empty store.',
  full: { n: 1, trials: 5 },
  smoke: { n: 1, trials: 1 },
  trial,
  summarise: (trials) => {
    const of = (key: keyof Trial) => median(trials.map((t) => t[key]));
    return {
      content_mib: round(of('content_bytes') / MIB),
      pack_ms: round(of('pack_ms')),
      tar_pack_ms: round(of('tar_pack_ms')),
      unpack_ms: round(of('unpack_ms')),
      tar_unpack_ms: round(of('tar_unpack_ms')),
      write_ms: round(of('write_ms')),
      unpack_over_write: round(median(trials.map((t) => t.unpack_ms / t.write_ms))),
      pack_speedup: round(median(trials.map((t) => t.tar_pack_ms / t.pack_ms))),
      unpack_speedup: round(median(trials.map((t) => t.tar_unpack_ms / t.unpack_ms))),
      v1_pack_ms: round(of('v1_pack_ms')),
      v1_unpack_ms: round(of('v1_unpack_ms')),
      pack_mib: round(of('bytes') / MIB),
      v1_mib: round(of('v1_bytes') / MIB),
      size_ratio: round(median(trials.map((t) => t.bytes / t.tar_bytes))),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
    };
  },
};
