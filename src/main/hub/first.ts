/**
 * What a lazy start needs first of a layer: header and index, then the frames of the working set, in its order. A pack has these bytes in
 * `memory.first`, before everything large, and zeros in their place in `memory.layer`. `memory.runs` says where they are: runs of [offset, bytes].
 */
import { CHUNK_BYTES } from '../../contract/page-map.js';
import { native } from '../../native/binding.js';

/** Header and index: without them nothing of the layer means anything. */
export const HEAD_RUNS = 2;
const HEADER_BYTES = 4096;
const ENTRY_BYTES = 56;
const PAGE_BYTES = 4096;
const RUN_BYTES = 16;

export interface Frame {
  chunk: number;
  offset: number;
  bytes: number;
}

/** The frames of a layer, by chunk; the layer has been opened before, so its header and index are sound (docs/reference/snapshot-format.md). */
export const framesOf = (layerFd: number): Frame[] => {
  const { index } = readIndex(layerFd);
  const frames: Frame[] = [];
  for (let at = 0; at < index.length; at += ENTRY_BYTES) {
    const frame = frameAt(index, at);
    if (frame) frames.push(frame);
  }
  return frames;
};

const readIndex = (layerFd: number): { offset: number; index: Buffer } => {
  const header = Buffer.alloc(HEADER_BYTES);
  native.fdRead(layerFd, header, 0);
  const offset = Number(header.readBigUInt64LE(24));
  const index = Buffer.alloc(Number(header.readBigUInt64LE(32)) * ENTRY_BYTES);
  native.fdRead(layerFd, index, offset);
  return { offset, index };
};

/** Undefined for an entry without data. */
const frameAt = (index: Buffer, at: number): Frame | undefined =>
  index.readUInt16LE(at + 4) === 0
    ? undefined
    : {
        chunk: index.readUInt32LE(at),
        // A layer has less than 2^48 bytes.
        offset: index.readUIntLE(at + 8, 6),
        bytes: index.readUInt32LE(at + 16),
      };

/** Entries are in the order of their chunks. */
const frameOf = (index: Buffer, chunk: number): Frame | undefined => {
  let [low, high] = [0, index.length / ENTRY_BYTES];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (index.readUInt32LE(middle * ENTRY_BYTES) < chunk) low = middle + 1;
    else high = middle;
  }
  const at = low * ENTRY_BYTES;
  return at < index.length && index.readUInt32LE(at) === chunk ? frameAt(index, at) : undefined;
};

/** Runs of [offset, bytes] in the layer: the first two are header and index. */
export const firstRuns = (layerFd: number, workingSet: Uint32Array): [number, number][] => {
  const { offset, index } = readIndex(layerFd);
  const runs: [number, number][] = [[0, HEADER_BYTES]];
  // A layer in which nothing is stored has no index.
  if (index.length > 0) runs.push([offset, index.length]);
  const taken = new Set<number>();
  for (const chunk of workingSet) {
    const frame = frameOf(index, chunk);
    // Equal frames are stored once.
    if (!frame || taken.has(frame.offset)) continue;
    taken.add(frame.offset);
    const last = runs.length > HEAD_RUNS ? runs.at(-1) : undefined;
    if (last && last[0] + last[1] === frame.offset) last[1] += frame.bytes;
    else runs.push([frame.offset, frame.bytes]);
  }
  return runs;
};

export const firstBytesToRuns = (bytes: Buffer): [number, number][] => {
  if (bytes.length % RUN_BYTES !== 0) throw new Error('its list of first runs is cut short');
  const numbers = new BigUint64Array(Uint8Array.from(bytes).buffer);
  const runs: [number, number][] = [];
  for (let i = 0; i < numbers.length; i += 2) runs.push([Number(numbers[i]), Number(numbers[i + 1])]);
  return runs;
};

export const firstRunsToBytes = (runs: [number, number][]): Buffer => {
  const bytes = Buffer.alloc(runs.length * RUN_BYTES);
  for (const [i, [offset, length]] of runs.entries()) {
    bytes.writeBigUInt64LE(BigInt(offset), i * RUN_BYTES);
    bytes.writeBigUInt64LE(BigInt(length), i * RUN_BYTES + 8);
  }
  return bytes;
};

export const totalOf = (runs: [number, number][]): number => runs.reduce((sum, [, bytes]) => sum + bytes, 0);

const WRONG_RUN = 'a first run is wrong';

/** In the order of the layer. Throws an Error when one lies outside, or two overlap. */
export const inOrder = (runs: [number, number][], layerBytes: number): [number, number][] => {
  const sorted = runs.toSorted((a, b) => a[0] - b[0]);
  let end = 0;
  for (const run of sorted) {
    const offset = run[0];
    if (offset < end || run[1] < 1 || offset + run[1] > layerBytes) throw new Error(WRONG_RUN);
    end = offset + run[1];
  }
  return sorted;
};

/** Of runs of shared pages [page of the layer, page of the disk, count], what no first run has. */
export const notFirst = (shared: Uint32Array, first: [number, number][], layerBytes: number): Uint32Array => {
  const moved = new Uint8Array(Math.ceil(layerBytes / PAGE_BYTES));
  for (const [offset, bytes] of first)
    moved.fill(1, Math.floor(offset / PAGE_BYTES), Math.ceil((offset + bytes) / PAGE_BYTES));
  const kept: number[] = [];
  for (let i = 0; i < shared.length; i += 3) {
    const [page, from, count] = [...shared.subarray(i, i + 3)] as [number, number, number];
    for (let done = 0; done < count; ) {
      let more = done;
      while (more < count && moved[page + more] === 0) more++;
      if (more > done) kept.push(page + done, from + done, more - done);
      done = more + 1;
    }
  }
  return Uint32Array.from(kept);
};

/** Chunks that an image of so many bytes has. */
export const chunksOf = (imageBytes: number): number => Math.ceil(imageBytes / CHUNK_BYTES);
