/** A new file that is written from front to back, and in which zeros become holes. */
import { closeSync, constants, copyFileSync, ftruncateSync, openSync } from 'node:fs';
import { fileParts } from './file-parts.js';
import { native } from '../native/binding.js';

const BLOCK_BYTES = 64 * 1024;
const ZEROS = Buffer.alloc(BLOCK_BYTES);

export class SparseFile {
  bytes = 0;

  /** The caller closes `fd`. */
  constructor(readonly fd: number) {}

  write(part: Buffer): void {
    for (let done = 0; done < part.length; ) {
      // To the next border of a block, so that a whole block of zeros is met as one.
      const length = Math.min(part.length - done, BLOCK_BYTES - (this.bytes % BLOCK_BYTES));
      const piece = part.subarray(done, done + length);
      if (!piece.equals(ZEROS.subarray(0, length))) native.fdWrite(this.fd, piece, this.bytes);
      this.bytes += length;
      done += length;
    }
  }

  /** Makes the file as long as it is, since its end may be a hole. */
  end(): void {
    ftruncateSync(this.fd, this.bytes);
  }
}

/** Copies a file into a new one: shares its blocks where the file system can, or leaves out its zeros. Throws what opening, reading and writing throw, and the reason of `signal`. */
export const copySparse = async (from: string, to: string, signal?: AbortSignal): Promise<void> => {
  try {
    copyFileSync(from, to, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE_FORCE);
    return;
  } catch {
    // Most cannot. What else is wrong is met again.
  }
  const fd = openSync(to, 'wx');
  try {
    const file = new SparseFile(fd);
    for await (const part of fileParts(from)) {
      signal?.throwIfAborted();
      file.write(part);
    }
    file.end();
  } finally {
    closeSync(fd);
  }
};
