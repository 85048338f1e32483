/**
 * A file that says how large the frame is that may be on its way to an agent in parts. If its writer is killed meanwhile, whoever
 * takes over the socket knows that the agent waits for the rest, and for how much at most.
 */
import { readFileSync, rmSync, writeFileSync } from 'node:fs';

/** A socket takes a frame of this size in one piece, unless it is nearly full (its buffer has some 200 KiB): then the mark comes a moment late. */
const SPLIT_FROM_BYTES = 64 * 1024;

export class SendMark {
  #bytes = 0;

  constructor(readonly path: string) {}

  /** A frame is about to be written. */
  before(bytes: number): void {
    if (bytes >= SPLIT_FROM_BYTES) this.#set(bytes);
  }

  /** It has been; `left` bytes of this and others are still to be taken by the socket. */
  after(bytes: number, left: number): void {
    if (left > 0) this.#set(bytes);
    else this.settle(left);
  }

  settle(left: number): void {
    if (left > 0 || this.#bytes === 0) return;
    this.#bytes = 0;
    rmSync(this.path, { force: true });
  }

  #set(bytes: number): void {
    if (bytes <= this.#bytes) return;
    this.#bytes = bytes;
    try {
      writeFileSync(this.path, String(bytes));
    } catch {
      // The directory of a sandbox that has ended may be gone.
    }
  }
}

/** Bytes of the largest frame that may have been cut off; 0 when there is none. The mark is taken away. */
export const takeMark = (path: string): number => {
  try {
    const bytes = Number(readFileSync(path, 'utf8'));
    rmSync(path, { force: true });
    return Number.isSafeInteger(bytes) ? bytes : 0;
  } catch {
    return 0;
  }
};
