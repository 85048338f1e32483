/** Packs in memory: what hostile ones are made of. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FrameFile, writeFrames } from '../../src/main/hub/frames.js';

const withFile = async <T>(work: (path: string) => Promise<T>): Promise<T> => {
  const folder = mkdtempSync(join(tmpdir(), 'frames-'));
  try {
    return await work(join(folder, 'frames'));
  } finally {
    rmSync(folder, { recursive: true });
  }
};

/** Any content, in frames. */
export const framed = (content: Buffer): Promise<Buffer> =>
  withFile(async (path) => {
    const fd = openSync(path, 'wx');
    try {
      const table = await writeFrames([content], fd);
      return Buffer.concat([readFileSync(path), table]);
    } finally {
      closeSync(fd);
    }
  });

/** What is in frames. */
export const unframed = (bytes: Buffer): Promise<Buffer> =>
  withFile(async (path) => {
    writeFileSync(path, bytes);
    const fd = openSync(path, 'r');
    try {
      const file = FrameFile.of(fd);
      return await file.read(0, file.contentBytes);
    } finally {
      closeSync(fd);
    }
  });
