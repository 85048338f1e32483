/**
 * Reads the one shape of tar that packs have (those of versions 1 and 2 decode their own headers): plain files, names of at most 100 bytes, no extensions. Extended headers are
 * where a general reader can be made to allocate without end or to follow links; here they are refused like any other type.
 */
const BLOCK = 512;
/** Zeros after the end: tar pads to 10 KiB. */
const PADDING_MAX = 64 * 1024;

export interface TarHeader {
  name: string;
  size: number;
}

export class TarReader<Header = TarHeader> {
  readonly #source: AsyncIterator<Buffer>;
  readonly #decode: (block: Buffer) => Header;
  #rest: Buffer = Buffer.alloc(0);

  constructor(source: AsyncIterable<Buffer>, decode: (block: Buffer) => Header) {
    this.#source = source[Symbol.asyncIterator]();
    this.#decode = decode;
  }

  /** The next header, or undefined at the archive's proper end. Throws an Error with the reason. */
  async next(): Promise<Header | undefined> {
    const block = await this.#take(BLOCK);
    if (block.every((byte) => byte === 0)) {
      await this.#end();
      return undefined;
    }
    return this.#decode(block);
  }

  /** The content behind a header, to be read to its end before the next header. */
  async *body(size: number): AsyncGenerator<Buffer> {
    for (let left = size; left > 0; ) {
      const part = await this.#some(left);
      left -= part.length;
      yield part;
    }
    const padding = (BLOCK - (size % BLOCK)) % BLOCK;
    if ((await this.#take(padding)).some((byte) => byte !== 0)) throw new Error('padding is not zero');
  }

  /** One more block of a header. */
  block(): Promise<Buffer> {
    return this.#take(BLOCK);
  }

  async #end(): Promise<void> {
    if ((await this.#take(BLOCK)).some((byte) => byte !== 0)) throw new Error('its end is not an end');
    for (let seen = 0; ; ) {
      const part = this.#rest.length > 0 ? this.#rest : await this.#pull();
      this.#rest = Buffer.alloc(0);
      if (!part) return;
      seen += part.length;
      if (seen > PADDING_MAX || part.some((byte) => byte !== 0)) throw new Error('something follows its end');
    }
  }

  async #take(bytes: number): Promise<Buffer> {
    const parts: Buffer[] = [];
    for (let left = bytes; left > 0; ) {
      const part = await this.#some(left);
      left -= part.length;
      // A part is valid until the next is asked for.
      parts.push(left === 0 ? part : Buffer.from(part));
    }
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
  }

  async #some(max: number): Promise<Buffer> {
    if (this.#rest.length === 0) {
      const part = await this.#pull();
      if (!part) throw new Error('truncated');
      this.#rest = part;
    }
    const part = this.#rest.subarray(0, max);
    this.#rest = this.#rest.subarray(part.length);
    return part;
  }

  async #pull(): Promise<Buffer | undefined> {
    for (;;) {
      const { value, done } = await this.#source.next();
      if (done) return undefined;
      if (value.length > 0) return value;
    }
  }
}

/** Throws an Error unless all of it is. */
export const requireZeros = (bytes: Buffer, reason: string): void => {
  if (bytes.some((byte) => byte !== 0)) throw new Error(reason);
};

/** Throws an Error unless it is the header of a plain file. */
export const decodeHeader = (block: Buffer): TarHeader => {
  verifyHeader(block);
  const name = text(block.subarray(0, 100));
  const type = String.fromCharCode(block[156] as number);
  if (type !== '0') throw new Error(`entry ${JSON.stringify(name)} is not a plain file`);
  if (text(block.subarray(345, 500)) !== '') throw new Error(`the name of entry ${JSON.stringify(name)} is too long`);
  return { name, size: number(block.subarray(124, 136)) };
};

/** Throws an Error unless its checksum is right. */
export const verifyHeader = (block: Buffer): void => {
  const sum = block.reduce((all, byte, i) => all + (i >= 148 && i < 156 ? 0x20 : byte), 0);
  if (octal(block.subarray(148, 156)) !== sum) throw new Error('the checksum of a header is wrong');
};

export const text = (field: Buffer): string => {
  const end = field.indexOf(0);
  return field.toString('latin1', 0, end < 0 ? field.length : end);
};

const octal = (field: Buffer): number => {
  const digits = text(field).trim();
  if (!/^[0-7]+$/.test(digits)) throw new Error('a number in a header is wrong');
  return Number.parseInt(digits, 8);
};

/** Sizes from 8 GiB on are binary, marked by the first bit. */
export const number = (field: Buffer): number => {
  if (field[0] !== 0x80) return octal(field);
  const value = field.readBigUInt64BE(4);
  if (field.readUIntBE(1, 3) !== 0 || value > BigInt(Number.MAX_SAFE_INTEGER)) throw new Error('a size is wrong');
  return Number(value);
};
