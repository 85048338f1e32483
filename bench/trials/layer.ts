import { randomFillSync } from 'node:crypto';
import { closeSync, fsyncSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import type { Bench, Parameters } from '../bench.js';
import { median, round, spread } from '../stats.js';

const MIB = 1024 * 1024;

interface Written {
  write_ms: number;
  data_bytes: number;
  /** Of each chunk, from the page cache. */
  read_us: number[];
}

interface Trial {
  hash_us: number[];
  plain_write_ms: number;
  raw: Written;
  zstd: Written;
  failed: number;
}

const timed = (work: () => void): number => {
  const began = process.hrtime.bigint();
  work();
  return Number(process.hrtime.bigint() - began) / 1e6;
};

/** Spreads chunks over the image: half of every page is random, half zero. */
const makeImage = (imageBytes: number, chunks: number): { memfd: number; at: number[] } => {
  const memfd = native.memfdCreate('bench');
  native.fdResize(memfd, imageBytes);
  const data = Buffer.alloc(CHUNK_BYTES);
  const stride = Math.floor(imageBytes / CHUNK_BYTES / chunks);
  const at = Array.from({ length: chunks }, (_, i) => i * stride);
  for (const chunk of at) {
    for (let page = 0; page < CHUNK_BYTES; page += 4096) randomFillSync(data, page, 2048);
    native.fdWrite(memfd, data, chunk * CHUNK_BYTES);
  }
  return { memfd, at };
};

const writeAndRead = (folder: string, memfd: number, at: number[], zstdLevel: number): Written => {
  const fd = openSync(join(folder, `layer-${zstdLevel}`), 'w+');
  let data_bytes = 0;
  const write_ms = timed(() => {
    data_bytes = native.layerWriteImage(memfd, fd, { chunkBytes: CHUNK_BYTES, zstdLevel }).dataBytes;
  });
  const source = native.sourceOpen([fd]);
  const into = new Uint8Array(CHUNK_BYTES);
  const read_us = at.map((chunk) => timed(() => native.sourceRead(source, chunk, into)) * 1000);
  native.sourceClose(source);
  closeSync(fd);
  return { write_ms, data_bytes, read_us };
};

const plainWrite = (folder: string, bytes: number): number => {
  const fd = openSync(join(folder, 'plain'), 'w');
  const data = randomFillSync(Buffer.alloc(MIB));
  const ms = timed(() => {
    for (let done = 0; done < bytes; done += MIB) writeSync(fd, data);
    fsyncSync(fd);
  });
  closeSync(fd);
  return ms;
};

const trial = async ({ image_mib, data_mib, zstd_level }: Parameters): Promise<Trial> => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-bench-'));
  try {
    const chunks = (Number(data_mib) * MIB) / CHUNK_BYTES;
    const { memfd, at } = makeImage(Number(image_mib) * MIB, chunks);
    const data = randomFillSync(Buffer.alloc(CHUNK_BYTES));
    const hash_us = Array.from({ length: 1000 }, () => timed(() => native.blake3(data)) * 1000);
    const plain_write_ms = plainWrite(folder, Number(data_mib) * MIB);
    const raw = writeAndRead(folder, memfd, at, 0);
    const zstd = writeAndRead(folder, memfd, at, Number(zstd_level));
    native.fdClose(memfd);
    return { hash_us, plain_write_ms, raw, zstd, failed: raw.data_bytes === chunks * CHUNK_BYTES ? 0 : 1 };
  } finally {
    rmSync(folder, { recursive: true });
  }
};

const summary = (layers: Written[]) => ({
  write_ms: round(median(layers.map((layer) => layer.write_ms))),
  read_us: spread(layers.flatMap((layer) => layer.read_us)),
  data_mib: round(median(layers.map((layer) => layer.data_bytes)) / MIB),
});

export const layer: Bench<Trial> = {
  name: 'layer',
  description:
    'Layer files, without any VM: writing an image as a base, raw and compressed, fsync included, beside writing as many bytes plainly ' +
    '(plain_write_ms); reading one chunk of 16 KiB from the page cache, decompressed and verified (read_us), and hashing alone (hash_us).',
  full: { n: 1, trials: 3, image_mib: 512, data_mib: 150, zstd_level: 1 },
  smoke: { n: 1, trials: 1, image_mib: 8, data_mib: 2, zstd_level: 1 },
  trial,
  summarise: (trials, { image_mib, data_mib }) => ({
    image_mib,
    data_mib,
    hash_us: spread(trials.flatMap((t) => t.hash_us)),
    plain_write_ms: round(median(trials.map((t) => t.plain_write_ms))),
    raw: summary(trials.map((t) => t.raw)),
    zstd: summary(trials.map((t) => t.zstd)),
    failed: trials.reduce((sum, t) => sum + t.failed, 0),
  }),
};
