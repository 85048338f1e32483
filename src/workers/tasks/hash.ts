import { createHash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import type { TaskInput, TaskOutput } from '../../contract/task.js';

const BUFFER_BYTES = 1024 * 1024;

export const hash = ({ paths }: TaskInput<'hash'>): TaskOutput<'hash'> => ({ digests: paths.map(digest) });

const digest = (path: string) => {
  const fd = openSync(path, 'r');
  try {
    const sha = createHash('sha256');
    const buffer = Buffer.allocUnsafe(BUFFER_BYTES);
    let bytes = 0;
    for (let n = readSync(fd, buffer); n > 0; n = readSync(fd, buffer)) {
      sha.update(buffer.subarray(0, n));
      bytes += n;
    }
    return { path, sha256: sha.digest('hex'), bytes };
  } finally {
    closeSync(fd);
  }
};
