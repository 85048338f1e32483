/** Where the frames of a pack go: which bytes of which files they bring, and which chunks and blocks are here because of them. */
import { readSync, writeSync } from 'node:fs';
import { decompress } from 'zstd-napi';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { CHUNK_BYTES } from '../../contract/page-map.js';
import { DISK_BLOCK_BYTES, type RemoteJob } from '../../contract/remote-role.js';
import { native } from '../../native/binding.js';

const HASH_BYTES = 32;
const HOLE_BYTES = 64 * 1024;
const ZEROS = Buffer.alloc(HOLE_BYTES);
const there = Buffer.alloc(HOLE_BYTES);
const HERE = 1;

interface Segment {
  at: number;
  count: number;
  file: number;
  offset: number;
}

export class Landing {
  readonly #stored: number[] = [];
  /** Where each frame begins, in the pack and in its content; and their ends. */
  readonly #packedAt: number[] = [0];
  readonly #contentAt: number[] = [0];
  readonly #here: Uint8Array;
  readonly #segmentsOf: Segment[][] = [];
  readonly #itemsOf: number[][] = [];
  readonly #framesOf = new Map<number, number[]>();
  /** Frames that an item still lacks. */
  readonly #lacks = new Map<number, number>();
  readonly #chunk = Buffer.alloc(CHUNK_BYTES);
  readonly #block = Buffer.alloc(DISK_BLOCK_BYTES);
  hereBytes = 0;

  constructor(readonly job: RemoteJob) {
    for (let i = 0; i < job.frames.length; i += 2) {
      const [stored, content] = [job.frames[i] as number, job.frames[i + 1] as number];
      this.#stored.push(stored);
      this.#packedAt.push((this.#packedAt.at(-1) as number) + stored);
      this.#contentAt.push((this.#contentAt.at(-1) as number) + content);
      this.#segmentsOf.push([]);
      this.#itemsOf.push([]);
    }
    this.#here = new Uint8Array(this.frames);
    readSync(job.record, this.#here, 0, this.frames, job.recordOffset);
    this.#here.forEach((here, frame) => {
      if (here) this.hereBytes += this.stored(frame);
    });
    const segments: Segment[] = [];
    for (let i = 0; i < job.segments.length; i += 4) {
      const [at, count] = [job.segments[i] as number, job.segments[i + 1] as number];
      const segment = { at, count, file: job.segments[i + 2] as number, offset: job.segments[i + 3] as number };
      segments.push(segment);
      for (const frame of this.#framesAt(at, count)) this.#segmentsOf[frame]?.push(segment);
    }
    this.#countItems(segments);
  }

  get frames(): number {
    return this.#stored.length;
  }

  stored(frame: number): number {
    return this.#stored[frame] as number;
  }

  packedAt(frame: number): number {
    return this.#packedAt[frame] as number;
  }

  isHere(frame: number): boolean {
    return this.#here[frame] === 1;
  }

  #countItems(segments: Segment[]): void {
    const { job } = this;
    const places = new Places(segments);
    // Few frames each: a list is quicker than a set.
    const items = this.#framesOf;
    const add = (item: number, file: number, offset: number, count: number): void => {
      const frames = items.get(item) ?? [];
      items.set(item, frames);
      for (const [at, bytes] of places.find(file, offset, count))
        for (const frame of this.#framesAt(at, bytes)) if (!frames.includes(frame)) frames.push(frame);
    };
    for (let i = 0; i < job.chunks.length; i += 3)
      add(job.chunks[i] as number, 0, job.chunks[i + 1] as number, job.chunks[i + 2] as number);
    const { file, bytes } = job.disk;
    for (let block = 0; block * DISK_BLOCK_BYTES < bytes; block++)
      add(
        job.firstBlock + block,
        file,
        block * DISK_BLOCK_BYTES,
        Math.min(DISK_BLOCK_BYTES, bytes - block * DISK_BLOCK_BYTES),
      );
    const here: number[] = [];
    for (const [item, frames] of items) {
      const missing = frames.filter((frame) => !this.isHere(frame));
      if (missing.length === 0) here.push(item);
      else this.#lacks.set(item, missing.length);
      for (const frame of missing) this.#itemsOf[frame]?.push(item);
    }
    native.arrivalsSettle(job.arrivals, Uint32Array.from(here), HERE);
  }

  #framesAt(at: number, count: number): number[] {
    const frames: number[] = [];
    for (let frame = upper(this.#contentAt, at) - 1; frame < this.frames; frame++) {
      if ((this.#contentAt[frame] as number) >= at + count) break;
      frames.push(frame);
    }
    return frames;
  }

  /** What the items lack, in their order, each frame once. */
  framesOf(items: Uint32Array): number[] {
    const frames = new Set<number>();
    for (const item of items)
      for (const frame of this.#framesOf.get(item) ?? []) if (!this.isHere(frame)) frames.add(frame);
    return [...frames];
  }

  missing(items: Iterable<number>): Uint32Array {
    return Uint32Array.from([...items].filter((item) => this.#lacks.has(item)));
  }

  /** Puts a frame into the files. Returns the items that are whole by it. Throws PACK_INVALID when something is not what the pack's manifest says. */
  land(frame: number, stored: Buffer): number[] {
    const { job } = this;
    if (this.isHere(frame)) return [];
    const begin = this.#contentAt[frame] as number;
    const bytes = (this.#contentAt[frame + 1] as number) - begin;
    const content = this.#unpacked(frame, stored, bytes);
    for (const { at, count, file, offset } of this.#segmentsOf[frame] as Segment[]) {
      const [from, to] = [Math.max(at, begin), Math.min(at + count, begin + bytes)];
      writeData(job.files[file] as number, content.subarray(from - begin, to - begin), offset + from - at);
    }
    const whole = (this.#itemsOf[frame] as number[]).filter((item) => this.#lacks.get(item) === 1);
    for (const item of whole) this.#verify(item);
    for (const item of this.#itemsOf[frame] as number[]) {
      const left = (this.#lacks.get(item) as number) - 1;
      if (left === 0) this.#lacks.delete(item);
      else this.#lacks.set(item, left);
    }
    this.#here[frame] = 1;
    this.hereBytes += stored.length;
    writeAll(job.record, Buffer.of(1), job.recordOffset + frame);
    native.arrivalsSettle(job.arrivals, Uint32Array.from(whole), HERE);
    return whole;
  }

  #unpacked(frame: number, stored: Buffer, bytes: number): Buffer {
    if (bytes > limits.packFrameMaxBytes) throw this.#invalid(`frame ${frame} unpacks to too much`);
    let content: Buffer;
    try {
      content = decompress(stored);
    } catch (error) {
      throw this.#invalid(`frame ${frame} is damaged`, error);
    }
    if (content.length !== bytes) throw this.#invalid(`frame ${frame} is of another size`);
    return content;
  }

  #verify(item: number): void {
    const { job } = this;
    if (item < job.firstBlock) {
      try {
        native.sourceRead(job.source, item, this.#chunk);
      } catch (error) {
        throw this.#invalid(`chunk ${item} of its memory is not what it should be`, error);
      }
      return;
    }
    const block = item - job.firstBlock;
    const { file, bytes, blocks } = job.disk;
    const count = Math.min(DISK_BLOCK_BYTES, bytes - block * DISK_BLOCK_BYTES);
    readSync(job.files[file] as number, this.#block, 0, count, block * DISK_BLOCK_BYTES);
    const expected = Buffer.from(blocks.buffer, blocks.byteOffset + block * HASH_BYTES, HASH_BYTES).toString('hex');
    if (native.blake3(this.#block.subarray(0, count)) !== expected)
      throw this.#invalid(`block ${block} of its disk is not what it should be`);
  }

  #invalid(reason: string, cause?: unknown): ForkdError {
    const { origin, pathname } = new URL(this.job.url);
    return new ForkdError('PACK_INVALID', { path: `${origin}${pathname}`, reason }, cause);
  }
}

/** Finds where the bytes of a file are in the pack. */
class Places {
  readonly #files: Segment[][] = [];

  constructor(segments: Segment[]) {
    for (const segment of segments) {
      const list = this.#files[segment.file] ?? [];
      this.#files[segment.file] = list;
      list.push(segment);
    }
    for (const list of this.#files) list?.sort((a, b) => a.offset - b.offset);
  }

  /** Runs of [at, bytes] of the unpacked pack. */
  find(file: number, offset: number, count: number): [number, number][] {
    const list = this.#files[file] ?? [];
    const found: [number, number][] = [];
    let i = Math.max(0, upperBy(list, offset) - 1);
    for (let segment = list[i]; segment && segment.offset < offset + count; segment = list[++i]) {
      const from = Math.max(offset, segment.offset);
      const to = Math.min(offset + count, segment.offset + segment.count);
      if (to > from) found.push([segment.at + from - segment.offset, to - from]);
    }
    return found;
  }
}

/** The first index whose value is above `value`, in ascending numbers. */
const upper = (numbers: number[], value: number): number => {
  let [low, high] = [0, numbers.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((numbers[middle] as number) > value) high = middle;
    else low = middle + 1;
  }
  return low;
};

const upperBy = (list: Segment[], offset: number): number => {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((list[middle] as Segment).offset > offset) high = middle;
    else low = middle + 1;
  }
  return low;
};

/** Where there are only zeros a hole stays one. Something wrong that was refused before is written over. */
const writeData = (fd: number, part: Buffer, at: number): void => {
  for (let begin = 0; begin < part.length; begin += HOLE_BYTES) {
    const unit = part.subarray(begin, begin + HOLE_BYTES);
    if (unit.equals(ZEROS.subarray(0, unit.length)) && isZeroAt(fd, unit.length, at + begin)) continue;
    writeAll(fd, unit, at + begin);
  }
};

const isZeroAt = (fd: number, bytes: number, at: number): boolean => {
  const into = there.subarray(0, bytes);
  return readSync(fd, into, 0, bytes, at) === bytes && into.equals(ZEROS.subarray(0, bytes));
};

const writeAll = (fd: number, part: Buffer, at: number): void => {
  for (let done = 0; done < part.length; ) done += writeSync(fd, part, done, part.length - done, at + done);
};
