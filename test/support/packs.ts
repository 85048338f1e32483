/** Packs in memory: what hostile ones are made of. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as tar from 'tar-stream';
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

export interface Entry {
  name: string;
  type?: 'file' | 'symlink' | 'link' | 'directory';
  linkname?: string;
  body: Buffer;
}

/** What is in an archive. */
export const listen = (bytes: Buffer): Promise<Entry[]> =>
  new Promise((resolve, reject) => {
    const found: Entry[] = [];
    const extract = tar.extract();
    extract.on('entry', ({ name }, stream, next) => {
      const parts: Buffer[] = [];
      stream.on('data', (part: unknown) => parts.push(part as Buffer));
      stream.on('end', () => {
        found.push({ name, body: Buffer.concat(parts) });
        next();
      });
    });
    extract.on('finish', () => resolve(found));
    extract.on('error', reject);
    extract.end(bytes);
  });

/** Any entries, as an archive has them. */
export const archive = async (list: Entry[]): Promise<Buffer> => {
  const packing = tar.pack();
  for (const { name, type = 'file', linkname, body } of list) {
    packing.entry({ name, type, ...(linkname === undefined ? {} : { linkname }) }, type === 'file' ? body : '');
  }
  packing.finalize();
  const parts: Buffer[] = [];
  for await (const part of packing) parts.push(part as Buffer);
  return Buffer.concat(parts);
};
