/**
 * A stream as zstd frames that know nothing of each other: all processors compress and decompress at once, and any part of the stream can be
 * read without what is before it. It ends with a seek table in zstd's seekable format, in a frame that every zstd skips.
 */
import { limits } from '../../contract/limits.js';
import type { Pool } from '../pool.js';

/** Larger frames compress better; of smaller ones a lazy pull waits less for what it needs. 512 KiB cost 0.9 % of size over 2 MiB. */
export const FRAME_BYTES = 512 * 1024;
/** With the pages of disks left out, a pack is smaller than `zstd -3` of all of it, at half the time. */
const LEVEL = 1;
const MAGIC = 0xfd2fb528;
/** One of 16 numbers; the seekable format uses this one. */
const SKIPPABLE = 0x184d2a5e;
const SEEKABLE = 0x8f92eab1;
const FOOTER_BYTES = 9;
/** More than zstd can add to what it cannot compress. */
const GROWTH_BYTES = 64 * 1024;

type Sizes = [stored: number, content: number][];

/** Memory that workers see: what tasks read and write is not copied, and not allocated anew. */
interface Slot {
  from: Buffer;
  into: Buffer;
}

interface Running {
  slot: Slot;
  fromBytes: number;
  bytes: Promise<number>;
}

/** Runs tasks on a few slots, and gives their results in order. */
class Ring {
  readonly #free: Slot[];
  readonly #running: Running[] = [];

  constructor(
    readonly pool: Pool,
    readonly task: 'compress' | 'decompress',
    fromBytes: number,
    intoBytes: number,
  ) {
    const shared = (bytes: number) => Buffer.from(new SharedArrayBuffer(bytes));
    // One being filled and one being emptied, beside those that the processors have.
    this.#free = Array.from({ length: pool.width + 2 }, () => ({ from: shared(fromBytes), into: shared(intoBytes) }));
  }

  get isFull(): boolean {
    return this.#free.length === 0;
  }

  get isEmpty(): boolean {
    return this.#running.length === 0;
  }

  /** The input of the next task. */
  get input(): Buffer {
    return (this.#free[0] as Slot).from;
  }

  start(fromBytes: number, intoBytes: number, level = LEVEL): void {
    const slot = this.#free.shift() as Slot;
    const input = { from: slot.from.subarray(0, fromBytes), into: slot.into.subarray(0, intoBytes), level };
    const bytes = this.pool.run(this.task, input).then((output) => output.bytes);
    bytes.catch(() => undefined);
    this.#running.push({ slot, fromBytes, bytes });
  }

  /** The oldest result; its memory is used again after `done`. */
  async next(): Promise<{ data: Buffer; fromBytes: number; done: () => void }> {
    const { slot, fromBytes, bytes } = this.#running.shift() as Running;
    return { data: slot.into.subarray(0, await bytes), fromBytes, done: () => void this.#free.push(slot) };
  }

  /** Waits until no worker uses the memory. */
  async drain(): Promise<void> {
    await Promise.allSettled(this.#running.map(({ bytes }) => bytes));
  }
}

export interface FrameSource {
  /** Fills `into` unless the end comes before, or something that is to begin a frame. */
  read(into: Buffer): Promise<number>;
  /** Of zstd, for what `read` brought; undefined is the usual one. */
  readonly level?: number | undefined;
}

export interface FrameSink {
  /** `part` may change after it. */
  write(part: Uint8Array): Promise<void>;
}

export const compressFrames = async (source: FrameSource, sink: FrameSink, pool: Pool): Promise<void> => {
  const ring = new Ring(pool, 'compress', FRAME_BYTES, FRAME_BYTES + GROWTH_BYTES);
  const sizes: Sizes = [];
  const finish = async (): Promise<void> => {
    const { data, fromBytes, done } = await ring.next();
    sizes.push([data.length, fromBytes]);
    await sink.write(data);
    done();
  };
  try {
    for (;;) {
      const filled = await source.read(ring.input);
      if (filled === 0) break;
      ring.start(filled, FRAME_BYTES + GROWTH_BYTES, source.level);
      if (ring.isFull) await finish();
    }
    while (!ring.isEmpty) await finish();
    await sink.write(seekTable(sizes));
  } finally {
    await ring.drain();
  }
};

/** The content, frame by frame; each is valid until the next is asked for. Throws an Error with the reason. */
export async function* decompressFrames(source: AsyncIterable<Buffer>, pool: Pool): AsyncGenerator<Buffer> {
  const max = limits.packFrameMaxBytes;
  const ring = new Ring(pool, 'decompress', max + GROWTH_BYTES, max);
  const bytes = new Bytes(source);
  const sizes: Sizes = [];
  try {
    while (await bytes.frame(ring.input)) {
      sizes.push([bytes.at, bytes.contentBytes]);
      ring.start(bytes.at, bytes.contentBytes);
      if (ring.isFull) yield* emptied(ring);
    }
    while (!ring.isEmpty) yield* emptied(ring);
    await bytes.end(seekTable(sizes));
  } finally {
    await ring.drain();
  }
}

async function* emptied(ring: Ring): AsyncGenerator<Buffer> {
  const { data, done } = await ring.next().catch((error: { code?: string }) => {
    throw error.code === 'INTERNAL' ? new Error('a frame is damaged') : error;
  });
  yield data;
  done();
}

const seekTable = (sizes: Sizes): Buffer => {
  const table = Buffer.alloc(8 + sizes.length * 8 + FOOTER_BYTES);
  table.writeUInt32LE(SKIPPABLE, 0);
  table.writeUInt32LE(table.length - 8, 4);
  for (const [i, [stored, content]] of sizes.entries()) {
    table.writeUInt32LE(stored, 8 + i * 8);
    table.writeUInt32LE(content, 12 + i * 8);
  }
  table.writeUInt32LE(sizes.length, table.length - FOOTER_BYTES);
  table.writeUInt32LE(SEEKABLE, table.length - 4);
  return table;
};

/** Finds frames in a stream by their headers (RFC 8878, 3.1.1), and believes no size beyond the limits. */
class Bytes {
  readonly #source: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);
  #into: Buffer = Buffer.alloc(0);
  /** Bytes of the frame so far. */
  at = 0;
  contentBytes = 0;

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** Copies the next frame into `into`; false at the seek table, of which it has then read the magic number. */
  async frame(into: Buffer): Promise<boolean> {
    this.#into = into;
    this.at = 0;
    const magic = (await this.#take(4)).readUInt32LE();
    if (magic === SKIPPABLE) return false;
    if (magic !== MAGIC) throw new Error('it is not made of zstd frames');
    const descriptor = (await this.#take(1))[0] as number;
    if ((descriptor & 0x0b) !== 0) throw new Error('a frame needs a dictionary or is of another kind');
    const isSingle = (descriptor & 0x20) !== 0;
    if (!isSingle) await this.#take(1);
    this.contentBytes = await this.#contentSize(descriptor >> 6, isSingle);
    if (this.contentBytes > limits.packFrameMaxBytes) throw new Error('a frame unpacks to too much');
    while (!(await this.#block()));
    if ((descriptor & 0x04) !== 0) await this.#take(4);
    return true;
  }

  /** What is left must be this table, whose magic number was read. */
  async end(table: Buffer): Promise<void> {
    this.#into = Buffer.alloc(table.length);
    this.at = 0;
    if (!(await this.#take(table.length - 4)).equals(table.subarray(4))) throw new Error('its seek table is another');
    if (this.#rest.length > 0 || (await this.#pull())) throw new Error('something follows its end');
  }

  async #contentSize(code: number, isSingle: boolean): Promise<number> {
    const width = [isSingle ? 1 : 0, 2, 4, 8][code] as number;
    if (width === 0) throw new Error('a frame does not say its size');
    const field = await this.#take(width);
    if (width === 8) return Number(field.readBigUInt64LE());
    return field.readUIntLE(0, width) + (width === 2 ? 256 : 0);
  }

  /** True for the last one. */
  async #block(): Promise<boolean> {
    const head = (await this.#take(3)).readUIntLE(0, 3);
    const kind = (head >> 1) & 3;
    if (kind === 3) throw new Error('a block is of an unknown kind');
    await this.#take(kind === 1 ? 1 : head >> 3);
    return (head & 1) !== 0;
  }

  /** Adds the next bytes to the frame, and shows them. */
  async #take(bytes: number): Promise<Buffer> {
    const begin = this.at;
    if (begin + bytes > this.#into.length) throw new Error('a frame is too large');
    while (this.at < begin + bytes) {
      if (this.#rest.length === 0 && !(await this.#pull())) throw new Error('truncated');
      const copied = this.#rest.copy(this.#into, this.at, 0, begin + bytes - this.at);
      this.#rest = this.#rest.subarray(copied);
      this.at += copied;
    }
    return this.#into.subarray(begin, this.at);
  }

  async #pull(): Promise<boolean> {
    for (;;) {
      const { value, done } = await this.#source.next();
      if (done) return false;
      if (value.length === 0) continue;
      this.#rest = value;
      return true;
    }
  }
}
