/**
 * A stream as zstd frames that know nothing of each other: all processors compress and decompress at once, and any part of the stream can be
 * read without what is before it. It ends with a seek table in zstd's seekable format, in a frame that every zstd skips.
 */
import { readSync } from 'node:fs';
import { limits } from '../../contract/limits.js';
import { native } from '../../native/binding.js';
import { THREADS } from '../native-threads.js';

/** Larger frames compress better; of smaller ones a lazy pull waits less for what it needs. 512 KiB cost 0.9 % of size over 2 MiB. */
export const FRAME_BYTES = 512 * 1024;
/** One of 16 numbers; the seekable format uses this one. */
const SKIPPABLE = 0x184d2a5e;
const SEEKABLE = 0x8f92eab1;
export const FOOTER_BYTES = 9;
const TABLE_HEAD_BYTES = 8;
/** In pieces, for native code: bytes that are given, and zeros. */
const GIVEN = -1;
const ZEROS = -2;
const LOOK_MS = 50;

/** What follows does not share a frame with what is before it: a reader may want only one of them, or whole blocks of a file. */
export const CUT = { isCut: true } as const;

export interface FilePart {
  fd: number;
  size: number;
  /** Where it begins in the file. */
  from?: number;
  /** Left out, zeros in its place: [offset in the file, bytes], ascending, none touching two. */
  without?: [number, number][];
}

/** What a stream is made of, in order. */
export type Piece = Buffer | typeof CUT | FilePart;

export interface FrameHooks {
  signal?: AbortSignal | undefined;
  /** Bytes of content so far. */
  onProgress?: ((bytes: number) => void) | undefined;
}

/** Writes frames to a file from its beginning, or to a socket, in order. Returns the seek table, which is still to be written behind them. */
export const writeFrames = async (pieces: Piece[], target: number, hooks: FrameHooks = {}): Promise<Buffer> => {
  const plan = new Plan(pieces);
  const [flat, frames, given] = [int64s(plan.pieces), plan.frames(), Buffer.concat(plan.given)];
  const stored = await watched(hooks, (progress) => native.framesWrite(target, flat, frames, given, THREADS, progress));
  return seekTable(stored, frames);
};

/** In halves of 32 bits: a BigInt for each of thousands takes milliseconds. */
const int64s = (numbers: number[]): BigInt64Array => {
  const halves = new Int32Array(numbers.length * 2);
  for (const [i, value] of numbers.entries()) {
    halves[i * 2] = value >>> 0;
    halves[i * 2 + 1] = Math.floor(value / 2 ** 32);
  }
  return new BigInt64Array(halves.buffer);
};

/** Native threads work beside the event loop, which looks at them: it has nothing else that keeps it alive, or that would hear of an abort. */
export const watched = async <T>(hooks: FrameHooks, work: (progress: BigInt64Array) => Promise<T>): Promise<T> => {
  const progress = new BigInt64Array(new SharedArrayBuffer(16));
  let failed: { error: unknown } | undefined;
  const look = (): void => {
    try {
      hooks.signal?.throwIfAborted();
      hooks.onProgress?.(Number(Atomics.load(progress, 0)));
    } catch (error) {
      failed ??= { error };
      Atomics.store(progress, 1, 1n);
    }
  };
  const timer = setInterval(look, LOOK_MS);
  try {
    const result = await work(progress);
    look();
    if (failed) throw failed.error;
    return result;
  } catch (error) {
    throw failed ? failed.error : error;
  } finally {
    clearInterval(timer);
  }
};

/** Pieces as native code takes them, and where frames end. */
class Plan {
  /** Descriptor, offset, bytes. */
  readonly pieces: number[] = [];
  readonly given: Buffer[] = [];
  /** Bytes of each. */
  readonly #frames: number[] = [];
  #givenBytes = 0;
  #open = 0;

  constructor(pieces: Piece[]) {
    for (const piece of pieces) {
      if (Buffer.isBuffer(piece)) this.#addBytes(piece);
      else if ('isCut' in piece) this.#endFrame();
      else this.#addPart(piece);
    }
    this.#endFrame();
  }

  frames(): Uint32Array {
    return Uint32Array.from(this.#frames);
  }

  #addBytes(bytes: Buffer): void {
    this.#add(GIVEN, this.#givenBytes, bytes.length);
    this.given.push(bytes);
    this.#givenBytes += bytes.length;
  }

  #addPart({ fd, size, from = 0, without = [] }: FilePart): void {
    let at = from;
    for (const [offset, bytes] of without) {
      this.#add(fd, at, offset - at);
      this.#add(ZEROS, 0, bytes);
      at = offset + bytes;
    }
    this.#add(fd, at, from + size - at);
  }

  #add(fd: number, from: number, bytes: number): void {
    if (bytes === 0) return;
    this.pieces.push(fd, from, bytes);
    for (let left = bytes; left > 0; ) {
      const taken = Math.min(left, FRAME_BYTES - this.#open);
      this.#open += taken;
      left -= taken;
      if (this.#open === FRAME_BYTES) this.#endFrame();
    }
  }

  #endFrame(): void {
    if (this.#open > 0) this.#frames.push(this.#open);
    this.#open = 0;
  }
}

const seekTable = (stored: Uint32Array, frames: Uint32Array): Buffer => {
  const table = Buffer.alloc(TABLE_HEAD_BYTES + stored.length * 8 + FOOTER_BYTES);
  table.writeUInt32LE(SKIPPABLE, 0);
  table.writeUInt32LE(table.length - TABLE_HEAD_BYTES, 4);
  for (const [i, bytes] of stored.entries()) {
    table.writeUInt32LE(bytes, TABLE_HEAD_BYTES + i * 8);
    table.writeUInt32LE(frames[i] as number, TABLE_HEAD_BYTES + 4 + i * 8);
  }
  table.writeUInt32LE(stored.length, table.length - FOOTER_BYTES);
  table.writeUInt32LE(SEEKABLE, table.length - 4);
  return table;
};

/** How long the table is that a pack of `bytes` ends with, by its last bytes. Throws an Error with the reason. */
export const tableBytesOf = (tail: Buffer, bytes: number): number => {
  if (tail.length < FOOTER_BYTES || tail.readUInt32LE(tail.length - 4) !== SEEKABLE)
    throw new Error('it does not end in a seek table');
  const count = tail.readUInt32LE(tail.length - FOOTER_BYTES);
  const tableBytes = TABLE_HEAD_BYTES + count * 8 + FOOTER_BYTES;
  if (tableBytes > bytes || tableBytes > limits.packTableMaxBytes) throw new Error('its seek table is wrong');
  return tableBytes;
};

/** The frames of a pack of `bytes`, in pairs: bytes as they are stored, and unpacked. Throws an Error with the reason. */
export const framesOfTable = (table: Buffer, bytes: number): number[] => {
  const frames: number[] = [];
  let stored = 0;
  for (let at = TABLE_HEAD_BYTES; at < table.length - FOOTER_BYTES; at += 8) {
    frames.push(table.readUInt32LE(at), table.readUInt32LE(at + 4));
    stored += table.readUInt32LE(at);
  }
  const isWhole = table.readUInt32LE(0) === SKIPPABLE && table.readUInt32LE(4) === table.length - TABLE_HEAD_BYTES;
  if (!isWhole || table[table.length - 5] !== 0 || stored + table.length !== bytes)
    throw new Error('its seek table is wrong');
  if (frames.some((size, i) => size > limits.packFrameMaxBytes + (i % 2 === 0 ? GROWTH_BYTES : 0)))
    throw new Error('a frame unpacks to too much');
  return frames;
};

/** Of the content: as much as is held in memory. */
const HEAD_BYTES = 2 * FRAME_BYTES;

/** More than zstd can add to what it cannot compress. */
const GROWTH_BYTES = 64 * 1024;

/** Where a part of the content belongs: a descriptor and an offset in it; or one of these. */
export type Segment = [begin: number, bytes: number, fd: number, offset: number];
/** The offset is one in memory. */
export const ASIDE = -1;
/** Nowhere: it must be zero. */
export const NOTHING = -2;

/** A layer without ancestors that is being written, its header and index before all else. */
export interface LayerCheck {
  /** Handle of it. */
  source: number;
  /** Descriptor. */
  layer: number;
  /** For each chunk 1, when it was right as it was written. */
  known: Uint8Array;
}

/** A file of frames. Every method throws an Error with the reason, or what the system throws. */
export class FrameFile {
  readonly #begins: number[] = [];
  #head: Buffer | undefined;

  private constructor(
    readonly fd: number,
    readonly frames: number[],
    /** Of all frames, unpacked. */
    readonly contentBytes: number,
  ) {
    let begin = 0;
    for (let i = 1; i < frames.length; i += 2) {
      this.#begins.push(begin);
      begin += frames[i] as number;
    }
  }

  /** The caller closes `fd`. */
  static of(fd: number): FrameFile {
    const { bytes } = native.fdSize(fd);
    const tail = readAll(fd, Math.max(0, bytes - FOOTER_BYTES), Math.min(bytes, FOOTER_BYTES));
    const tableBytes = tableBytesOf(tail, bytes);
    const frames = framesOfTable(readAll(fd, bytes - tableBytes, tableBytes), bytes);
    return new FrameFile(
      fd,
      frames,
      frames.reduce((sum, size, i) => sum + (i % 2 === 1 ? size : 0), 0),
    );
  }

  /** The content from its beginning, as far as it is asked for. */
  async *contents(): AsyncGenerator<Buffer> {
    const head = await this.#beginning();
    yield head;
    for (const [frame, begin] of this.#begins.entries())
      if (begin >= head.length) yield this.read(begin, this.frames[frame * 2 + 1] as number);
  }

  /** The first frames. They hold nearly all that is small: it is decompressed once. */
  async #beginning(): Promise<Buffer> {
    const behind = this.#begins.find((begin) => begin >= HEAD_BYTES) ?? this.contentBytes;
    this.#head ??= await this.read(0, behind);
    return this.#head;
  }

  /** Some of the content, in memory. */
  async read(begin: number, bytes: number): Promise<Buffer> {
    const [part] = await this.readParts([[begin, bytes]]);
    return part as Buffer;
  }

  /** Several parts, [begin, bytes]: a frame that has more than one of them is decompressed once. */
  async readParts(parts: [number, number][]): Promise<Buffer[]> {
    if (parts.some(([begin, bytes]) => begin + bytes > this.contentBytes)) throw new Error('truncated');
    const head = this.#head;
    if (head && parts.every(([begin, bytes]) => begin + bytes <= head.length))
      return parts.map(([begin, bytes]) => head.subarray(begin, begin + bytes));
    // All of it is written, or there is an error.
    const into = Buffer.allocUnsafeSlow(parts.reduce((sum, [, bytes]) => sum + bytes, 0));
    const segments: Segment[] = [];
    const read: Buffer[] = [];
    let at = 0;
    for (const [begin, bytes] of parts) {
      if (bytes > 0) segments.push([begin, bytes, ASIDE, at]);
      read.push(into.subarray(at, at + bytes));
      at += bytes;
    }
    if (segments.length > 0) await this.place(segments, into, 0, [], {});
    return read;
  }

  /** The frame that has this byte of the content. */
  frameAt(offset: number): number {
    let [low, high] = [0, this.#begins.length];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if ((this.#begins[middle] as number) <= offset) low = middle;
      else high = middle;
    }
    return low;
  }

  /**
   * Puts parts of the content where they belong. Files from byte `split` on are written first, those before it then. Returns BLAKE3 of the parts `hashed` of it,
   * [begin, bytes], which lie behind that byte. Chunks of the layer of `check` are held to their hashes on their way. `folder`: an open directory of the file
   * system that is written to; the disk's cache is flushed meanwhile then.
   */
  async place(
    segments: Segment[],
    aside: Buffer,
    split: number,
    hashed: [number, number][],
    hooks: FrameHooks,
    { check, folder = -1 }: { check?: LayerCheck | undefined; folder?: number } = {},
  ): Promise<string[]> {
    const [flat, parts] = [int64s(segments.flat()), int64s(hashed.flat())];
    const frames = Uint32Array.from(this.frames);
    const { source, layer, known } = check ?? { source: -1, layer: 0, known: new Uint8Array() };
    return watched(hooks, (progress) =>
      native.framesRead(
        this.fd,
        frames,
        flat,
        aside,
        this.frameAt(split),
        parts,
        THREADS,
        progress,
        source,
        layer,
        known,
        folder,
      ),
    );
  }
}

const readAll = (fd: number, at: number, bytes: number): Buffer => {
  const into = Buffer.alloc(bytes);
  for (let done = 0; done < bytes; ) {
    const read = readSync(fd, into, done, bytes - done, at + done);
    if (read === 0) throw new Error('truncated');
    done += read;
  }
  return into;
};
