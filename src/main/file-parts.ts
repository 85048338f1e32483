/**
 * A file from front to back, in memory that is used again: a fresh buffer for each part costs more than the reading, in page faults. One part is read
 * while the other is looked at.
 */
import { closeSync, fstatSync, openSync, read as readCallback } from 'node:fs';
import { promisify } from 'node:util';

const PART_BYTES = 1024 * 1024;

const read = promisify(readCallback);

export interface Range {
  start: number;
  size: number;
}

/** Each part is valid until the next is asked for. Throws what opening and reading throw, and an Error when the file has become shorter. */
export async function* fileParts(path: string, range?: Range, partBytes = PART_BYTES): AsyncGenerator<Buffer> {
  const fd = openSync(path, 'r');
  let ahead: Promise<number> | undefined;
  try {
    const { start, size } = range ?? { start: 0, size: fstatSync(fd).size };
    const bytes = Math.min(partBytes, size);
    const buffers = [Buffer.allocUnsafeSlow(bytes), Buffer.allocUnsafeSlow(bytes)];
    const readAt = (at: number): Promise<number> | undefined => {
      if (at >= size) return undefined;
      const buffer = buffers[(at / partBytes) % 2] as Buffer;
      const reading = full(fd, buffer.subarray(0, size - at), start + at);
      // Seen when it is waited for; nobody waits for it when the reader stops before.
      reading.catch(() => undefined);
      return reading;
    };
    ahead = readAt(0);
    for (let at = 0; at < size; at += partBytes) {
      const length = (await ahead) as number;
      const part = (buffers[(at / partBytes) % 2] as Buffer).subarray(0, length);
      ahead = readAt(at + partBytes);
      yield part;
    }
  } finally {
    await ahead?.catch(() => undefined);
    closeSync(fd);
  }
}

const full = async (fd: number, into: Buffer, at: number): Promise<number> => {
  for (let done = 0; done < into.length; ) {
    const { bytesRead } = await read(fd, into, done, into.length - done, at + done);
    if (bytesRead === 0) throw new Error('truncated');
    done += bytesRead;
  }
  return into.length;
};
