/**
 * A disk that is written while it is not yet known what will be on it: contents come first, one behind the other, and leave room where superblocks and
 * their copies will be. The disk is a file with holes where there are only zeros.
 */
import { closeSync, ftruncateSync, openSync, readSync, write as writeCallback } from 'node:fs';
import { promisify } from 'node:util';
import { BLOCK, type Extent, GROUP_BLOCKS, hasSuperblock, RESERVED_BLOCKS } from './layout.js';

const writeFile = promisify(writeCallback);

const BUFFER_BYTES = 1024 * 1024;
const ZEROS = Buffer.alloc(BUFFER_BYTES);
/** Zeros of a file become a hole of it in steps of this size. */
const UNIT_BYTES = 64 * 1024;
/** Of an extent. */
const EXTENT_BLOCKS_MAX = 32768;

interface Run {
  block: number;
  count: number;
}

export class Disk {
  readonly #fd: number;
  /** One is filled while the other is written. */
  #buffers: Buffer[] = [Buffer.alloc(BUFFER_BYTES), Buffer.alloc(BUFFER_BYTES)];
  #filled = 0;
  /** Where the filled bytes belong. */
  #begin = 0;
  #writing: Promise<void> = Promise.resolve();
  /** The first block that nothing has asked for. */
  #next = 0;
  /** Given back, or passed over. */
  readonly #free: Run[] = [];
  readonly #unit = Buffer.alloc(UNIT_BYTES);

  /** Makes the file. */
  constructor(path: string) {
    this.#fd = openSync(path, 'wx+');
  }

  /** Everything from here on is free. */
  get end(): number {
    return this.#next;
  }

  get free(): readonly Run[] {
    return this.#free;
  }

  /** Stores the content of a file. Throws what reading and writing throw. */
  async store(body: AsyncIterable<Buffer>): Promise<{ extents: Extent[]; bytes: number }> {
    const extents: Extent[] = [];
    let held = 0;
    let bytes = 0;
    const emit = async (unit: Buffer): Promise<void> => {
      const logical = bytes / BLOCK;
      bytes += unit.length;
      if (unit.length < BLOCK || !unit.equals(ZEROS.subarray(0, unit.length)))
        await this.#place(unit, logical, extents);
    };
    for await (const part of body) {
      for (let at = 0; at < part.length; ) {
        if (held === 0 && part.length - at >= UNIT_BYTES) {
          await emit(part.subarray(at, at + UNIT_BYTES));
          at += UNIT_BYTES;
          continue;
        }
        const copied = part.copy(this.#unit, held, at);
        at += copied;
        held += copied;
        if (held < UNIT_BYTES) continue;
        await emit(this.#unit);
        held = 0;
      }
    }
    if (held > 0) await emit(this.#unit.subarray(0, held));
    return { extents, bytes };
  }

  async #place(unit: Buffer, first: number, extents: Extent[]): Promise<void> {
    for (let at = 0; at < unit.length; ) {
      const { block, count } = this.#take(Math.ceil((unit.length - at) / BLOCK));
      const part = unit.subarray(at, at + count * BLOCK);
      await this.put(block, part);
      append(extents, { logical: first + at / BLOCK, block, count });
      at += part.length;
    }
  }

  /** Blocks that lie one behind the other, as many as these bytes need, with these bytes in them. */
  async add(bytes: Buffer): Promise<number> {
    const block = this.reserve(Math.ceil(bytes.length / BLOCK));
    await this.put(block, bytes);
    return block;
  }

  /** Blocks that lie one behind the other and have zeros in them. */
  reserve(count: number): number {
    const end = (Math.floor(this.#next / GROUP_BLOCKS) + 1) * GROUP_BLOCKS;
    if (this.#next + count > end && hasSuperblock(end / GROUP_BLOCKS)) {
      if (this.#next < end) this.#free.push({ block: this.#next, count: end - this.#next });
      this.#next = end;
    }
    this.#skip();
    const block = this.#next;
    this.#next += count;
    return block;
  }

  /** What a file had may be used again. */
  release(extents: Extent[]): void {
    for (const { block, count } of extents) this.#free.push({ block, count });
  }

  /** At most so many. */
  #take(max: number): Run {
    const old = this.#free.pop();
    if (old !== undefined) {
      if (old.count > max) this.#free.push({ block: old.block + max, count: old.count - max });
      return { block: old.block, count: Math.min(max, old.count) };
    }
    this.#skip();
    const end = (Math.floor(this.#next / GROUP_BLOCKS) + 1) * GROUP_BLOCKS;
    const run = { block: this.#next, count: Math.min(max, end - this.#next) };
    this.#next += run.count;
    return run;
  }

  /** Where a superblock will be, there is nothing else. */
  #skip(): void {
    if (this.#next % GROUP_BLOCKS === 0 && hasSuperblock(this.#next / GROUP_BLOCKS)) this.#next += RESERVED_BLOCKS;
  }

  /** Writes bytes at the beginning of a block; the rest of the last block is filled with zeros. The memory may be used again when it returns. */
  async put(block: number, bytes: Buffer): Promise<void> {
    const position = block * BLOCK;
    if (position !== this.#begin + this.#filled) {
      await this.#flush();
      this.#begin = position;
    }
    for (let at = 0; at < bytes.length; ) {
      if (this.#filled === BUFFER_BYTES) await this.#flush();
      const copied = bytes.copy(this.#buffers[0] as Buffer, this.#filled, at);
      at += copied;
      this.#filled += copied;
    }
    const rest = (BLOCK - (this.#filled % BLOCK)) % BLOCK;
    this.#buffers[0]?.fill(0, this.#filled, this.#filled + rest);
    this.#filled += rest;
  }

  async #flush(): Promise<void> {
    await this.#writing;
    const [full, other] = this.#buffers as [Buffer, Buffer];
    const [bytes, position] = [full.subarray(0, this.#filled), this.#begin];
    this.#buffers = [other, full];
    this.#begin += this.#filled;
    this.#filled = 0;
    this.#writing = writeAll(this.#fd, bytes, position);
    this.#writing.catch(() => undefined);
  }

  /** The beginning of a file. */
  async read(extents: Extent[], size: number): Promise<Buffer> {
    await this.#flush();
    await this.#writing;
    const content = Buffer.alloc(size);
    for (const { logical, block, count } of extents) {
      const into = content.subarray(logical * BLOCK, (logical + count) * BLOCK);
      readSync(this.#fd, into, 0, into.length, block * BLOCK);
    }
    return content;
  }

  /** What was given back and not used again is overwritten: nobody should find it. */
  async finish(blocks: number): Promise<void> {
    for (const { block, count } of this.#free)
      for (let at = 0; at < count; at += BUFFER_BYTES / BLOCK)
        await this.put(block + at, ZEROS.subarray(0, Math.min(BUFFER_BYTES, (count - at) * BLOCK)));
    await this.#flush();
    await this.#writing;
    ftruncateSync(this.#fd, blocks * BLOCK);
  }

  async close(): Promise<void> {
    await this.#writing.catch(() => undefined);
    closeSync(this.#fd);
  }
}

const append = (extents: Extent[], extent: Extent): void => {
  const last = extents.at(-1);
  const isNext =
    last !== undefined &&
    last.logical + last.count === extent.logical &&
    last.block + last.count === extent.block &&
    last.count + extent.count <= EXTENT_BLOCKS_MAX;
  if (isNext) last.count += extent.count;
  else extents.push(extent);
};

const writeAll = async (fd: number, bytes: Buffer, position: number): Promise<void> => {
  for (let done = 0; done < bytes.length; )
    done += (await writeFile(fd, bytes, done, bytes.length - done, position + done)).bytesWritten;
};
