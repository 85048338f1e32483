import { mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import { compileSubject, Subject } from '../../test/native/private-subject.js';
import type { Bench, Parameters } from '../bench.js';
import { median, round } from '../stats.js';

const PAGE_BYTES = 4096;
const MIB = 1024 * 1024;

interface Trial {
  dirtied_bytes: number;
  written_bytes: number;
  write_ms: number;
  failed: number;
}

/** Pages far apart: each in a chunk of its own, the dearest case for an index of chunks. */
const trial = async ({ image_mib, dirty_mib }: Parameters): Promise<Trial> => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-bench-'));
  const memfd = native.memfdCreate('bench');
  native.fdResize(memfd, Number(image_mib) * MIB);
  const base = openSync(join(folder, 'base'), 'w+');
  const diff = openSync(join(folder, 'diff'), 'w+');
  const { root } = native.layerWriteImage(memfd, base, { chunkBytes: CHUNK_BYTES, zstdLevel: 0 });
  const subject = new Subject(compileSubject(folder), memfd);
  try {
    const pages = (Number(dirty_mib) * MIB) / PAGE_BYTES;
    const stride = Math.floor((Number(image_mib) * MIB) / PAGE_BYTES / pages);
    for (let page = 0; page < pages; page++) await subject.do(`write ${page * stride} ${page + 1}`);
    const began = process.hrtime.bigint();
    const { dirtyBytes } = native.layerWriteProcess(subject.pid, memfd, diff, { parentRoot: root, zstdLevel: 0 });
    const write_ms = Number(process.hrtime.bigint() - began) / 1e6;
    const dirtied_bytes = pages * PAGE_BYTES;
    const failed = dirtyBytes === dirtied_bytes ? 0 : 1;
    return { dirtied_bytes, written_bytes: native.fdSize(diff).allocated, write_ms, failed };
  } finally {
    await subject.end();
    for (const fd of [memfd, base, diff]) native.fdClose(fd);
    rmSync(folder, { recursive: true });
  }
};

export const branchWrite: Bench<Trial> = {
  name: 'branch-write',
  description:
    'The layer of a diff, without any VM: a process writes pages that lie far apart in its private mapping of an image; its diff is ' +
    'written uncompressed. What the file takes on the disk (written_bytes), beside the pages written to (dirtied_bytes).',
  full: { n: 1, trials: 3, image_mib: 512, dirty_mib: 32 },
  smoke: { n: 1, trials: 1, image_mib: 16, dirty_mib: 1 },
  trial,
  summarise: (trials, { image_mib }) => {
    const dirtied_bytes = median(trials.map((t) => t.dirtied_bytes));
    const written_bytes = median(trials.map((t) => t.written_bytes));
    return {
      image_mib,
      dirtied_bytes,
      written_bytes,
      ratio: round(written_bytes / dirtied_bytes),
      write_ms: round(median(trials.map((t) => t.write_ms))),
      failed: trials.reduce((sum, t) => sum + t.failed, 0),
    };
  },
};
