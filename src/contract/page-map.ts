/**
 * The page map: one state per chunk of a memory image, in memory that every thread shares. It says which chunks of the
 * image's memfd hold their data already, and makes sure that each is read, verified and decompressed once.
 *
 *             claim (one winner)            settle(true)
 *   ABSENT  ---------------------> FILLING -------------> PRESENT
 *      ^                              |
 *      +------------------------------+
 *               settle(false): the fill failed
 *
 * Every move is a compare-and-swap. src/native/page_map.cc makes the same moves on the same Int32Array.
 */
export const ABSENT = 0;
export const FILLING = 1;
export const PRESENT = 2;

/**
 * Bytes a chunk: what is read, hashed and placed at once. With 64 KiB a third of an image was read before the first answer,
 * with 16 KiB less than a fifth (bench `lazy`); smaller chunks make more faults, and an index that is a larger part of the file.
 */
export const CHUNK_BYTES = 16384;

export interface PageMapCounts {
  absent: number;
  filling: number;
  present: number;
}

export class PageMap {
  /** To hand the map to a worker, post this array and wrap it there again. */
  readonly states: Int32Array;

  constructor(states: Int32Array) {
    this.states = states;
  }

  /** A map with every chunk absent, for an image of `bytes`. The last chunk may be shorter than CHUNK_BYTES. */
  static create(bytes: number): PageMap {
    const chunks = Math.ceil(bytes / CHUNK_BYTES);
    return new PageMap(new Int32Array(new SharedArrayBuffer(chunks * Int32Array.BYTES_PER_ELEMENT)));
  }

  /** True for the one caller that must now fill the chunk and settle it. */
  claim(index: number): boolean {
    return Atomics.compareExchange(this.states, index, ABSENT, FILLING) === ABSENT;
  }

  /** Ends a claim. False when the chunk was not being filled. */
  settle(index: number, present: boolean): boolean {
    return Atomics.compareExchange(this.states, index, FILLING, present ? PRESENT : ABSENT) === FILLING;
  }

  /** A look at a moving target, unless nothing is filling. */
  counts(): PageMapCounts {
    let absent = 0;
    let filling = 0;
    let present = 0;
    for (let index = 0; index < this.states.length; index++) {
      const state = Atomics.load(this.states, index);
      if (state === ABSENT) absent++;
      else if (state === FILLING) filling++;
      else present++;
    }
    return { absent, filling, present };
  }
}
