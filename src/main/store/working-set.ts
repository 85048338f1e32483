/**
 * The chunks that the first children of a snapshot touched, in their order: what the next start loads first. A hint: it is
 * kept beside the snapshot, nothing depends on it, and one that makes no sense is as good as none.
 */
import { closeSync, constants, openSync, readSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { WORKING_SET_FILE } from '../../contract/snapshot.js';

const NUMBER_BYTES = Uint32Array.BYTES_PER_ELEMENT;

/** Chunk numbers below `chunks`, each once; undefined when there are none, or the file is not a list of such. */
export const readWorkingSet = (dir: string, chunks: number): Uint32Array | undefined => {
  let bytes: Buffer;
  try {
    // Without waiting: a pipe is not a list.
    const fd = openSync(join(dir, WORKING_SET_FILE), constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      bytes = Buffer.alloc((chunks + 1) * NUMBER_BYTES);
      bytes = bytes.subarray(0, readSync(fd, bytes));
    } finally {
      closeSync(fd);
    }
  } catch {
    return undefined;
  }
  if (bytes.length === 0 || bytes.length % NUMBER_BYTES !== 0 || bytes.length > chunks * NUMBER_BYTES) return undefined;
  const numbers = Uint32Array.from({ length: bytes.length / NUMBER_BYTES }, (_, i) =>
    bytes.readUInt32LE(i * NUMBER_BYTES),
  );
  const isList = numbers.every((chunk) => chunk < chunks) && new Set(numbers).size === numbers.length;
  return isList ? numbers : undefined;
};

/** Appears whole. Nothing happens where it cannot be written: a directory that is gone, or of somebody else. */
export const writeWorkingSet = (dir: string, chunks: Uint32Array): void => {
  const bytes = Buffer.alloc(chunks.length * NUMBER_BYTES);
  for (const [i, chunk] of chunks.entries()) bytes.writeUInt32LE(chunk, i * NUMBER_BYTES);
  const half = join(dir, `.${WORKING_SET_FILE}-${process.pid}`);
  try {
    writeFileSync(half, bytes, { mode: 0o600 });
    renameSync(half, join(dir, WORKING_SET_FILE));
  } catch {
    rmSync(half, { force: true });
  }
};
