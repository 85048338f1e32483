/**
 * Reads the tar archives of images: ustar with PAX and GNU extensions, as container tools write them. Names are byte strings (latin1), since a
 * file system knows no encoding. Everything that an archive can make grow is bounded.
 */
import { readSync } from 'node:fs';
import { limits } from '../../contract/limits.js';

const BLOCK = 512;

export type TarKind = 'file' | 'link' | 'symlink' | 'character' | 'block' | 'directory' | 'fifo';

export interface TarEntry {
  name: string;
  kind: TarKind;
  /** Of hard and symbolic links. */
  target: string;
  /** Permissions with setuid, setgid and sticky. */
  mode: number;
  uid: number;
  gid: number;
  size: number;
  /** Seconds. */
  mtime: number;
  major: number;
  minor: number;
  xattrs: Map<string, Buffer>;
}

const KINDS: Record<string, TarKind> = {
  '0': 'file',
  '\0': 'file',
  '7': 'file',
  '1': 'link',
  '2': 'symlink',
  '3': 'character',
  '4': 'block',
  '5': 'directory',
  '6': 'fifo',
};

/** Exact numbers of bytes, from front to back. */
export interface ByteSource {
  /** Undefined at the end. Valid until the next call. Throws an Error when the end comes in the middle. */
  take(bytes: number): Promise<Buffer | undefined>;
  /** At most so many, at least one; undefined at the end. Valid until the next call. */
  some(max: number): Promise<Buffer | undefined>;
  skip(bytes: number): Promise<void>;
}

export class StreamBytes implements ByteSource {
  readonly #source: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  async take(bytes: number): Promise<Buffer | undefined> {
    const first = await this.some(bytes);
    if (first === undefined || first.length === bytes) return first;
    const whole = Buffer.alloc(bytes);
    for (let at = first.copy(whole); at < bytes; ) {
      const part = await this.some(bytes - at);
      if (!part) throw new Error('truncated');
      at += part.copy(whole, at);
    }
    return whole;
  }

  async some(max: number): Promise<Buffer | undefined> {
    while (this.#rest.length === 0) {
      const { value, done } = await this.#source.next();
      if (done) return undefined;
      this.#rest = value;
    }
    const part = this.#rest.subarray(0, max);
    this.#rest = this.#rest.subarray(part.length);
    return part;
  }

  async skip(bytes: number): Promise<void> {
    for (let left = bytes; left > 0; ) {
      const part = await this.some(left);
      if (!part) throw new Error('truncated');
      left -= part.length;
    }
  }
}

/** A file: what is skipped is not read. */
export class FileBytes implements ByteSource {
  readonly #buffer = Buffer.alloc(BLOCK * 128);
  at = 0;

  constructor(
    readonly fd: number,
    readonly size: number,
  ) {}

  async take(bytes: number): Promise<Buffer | undefined> {
    if (this.at === this.size) return undefined;
    const into = bytes <= this.#buffer.length ? this.#buffer.subarray(0, bytes) : Buffer.alloc(bytes);
    if (readSync(this.fd, into, 0, bytes, this.at) !== bytes) throw new Error('truncated');
    this.at += bytes;
    return into;
  }

  async some(max: number): Promise<Buffer | undefined> {
    return this.take(Math.min(max, this.size - this.at, this.#buffer.length));
  }

  async skip(bytes: number): Promise<void> {
    this.at += bytes;
    if (this.at > this.size) throw new Error('truncated');
  }
}

/** The content of an entry. What of it is not read is skipped. */
export class Body implements AsyncIterable<Buffer> {
  constructor(
    readonly source: ByteSource,
    public left: number,
  ) {}

  async *[Symbol.asyncIterator](): AsyncGenerator<Buffer> {
    while (this.left > 0) {
      const part = await this.source.some(this.left);
      if (!part) throw new Error('truncated');
      this.left -= part.length;
      yield part;
    }
  }
}

type Pax = Map<string, Buffer>;

/** The entries of an archive, each with its content, which is to be read before the next. Throws an Error with the reason. */
export async function* readTar(reader: ByteSource): AsyncGenerator<{ entry: TarEntry; body: Body }> {
  let pax: Pax = new Map();
  let [longName, longTarget]: (string | undefined)[] = [];
  for (let count = 0; ; ) {
    const block = await reader.take(BLOCK);
    // Tools differ in what they put behind the last entry: a block of zeros is the end, and so is the end of the file.
    if (block === undefined || isZero(block)) return;
    requireChecksum(block);
    const type = String.fromCharCode(block[156] as number);
    const size = number(block, 124, 12);
    if ('xgLK'.includes(type)) {
      if (size > limits.imageHeaderMaxBytes) throw new Error('an extended header is too large');
      const content = Buffer.from((await reader.take(size)) ?? []);
      await reader.skip(padding(size));
      if (type === 'x') pax = parsePax(content);
      else if (type === 'L') longName = cString(content);
      else if (type === 'K') longTarget = cString(content);
      continue;
    }
    const kind = KINDS[type];
    if (kind === undefined)
      throw new Error(`entry '${shownName(block)}' is of the unknown type ${JSON.stringify(type)}`);
    if (++count > limits.imageEntriesMax) throw new Error(`it has more than ${limits.imageEntriesMax} entries`);
    const entry = entryOf(block, kind, size, pax, longName, longTarget);
    pax = new Map();
    longName = longTarget = undefined;
    const body = new Body(reader, entry.size);
    yield { entry, body };
    await reader.skip(body.left + padding(entry.size));
  }
}

const entryOf = (
  block: Buffer,
  kind: TarKind,
  headerSize: number,
  pax: Pax,
  longName: string | undefined,
  longTarget: string | undefined,
): TarEntry => {
  const text = (key: string): string | undefined => pax.get(key)?.toString('latin1');
  const decimal = (key: string, fallback: number): number => {
    const value = text(key);
    if (value === undefined) return fallback;
    if (!/^-?\d{1,15}(\.\d*)?$/.test(value)) throw new Error(`'${key}' of an entry is not a number`);
    return Number(value);
  };
  const ustar = block.toString('latin1', 257, 262) === 'ustar' && block[262] === 0;
  const prefix = ustar ? cString(block.subarray(345, 500)) : '';
  const short = cString(block.subarray(0, 100));
  // A directory of an old tar is a file whose name ends in a slash.
  const name = text('path') ?? longName ?? (prefix === '' ? short : `${prefix}/${short}`);
  const real = kind === 'file' && name.endsWith('/') ? 'directory' : kind;
  if ([...pax.keys()].some((key) => key.startsWith('GNU.sparse.'))) throw new Error(`'${name}' is a sparse file`);
  const size = decimal('size', headerSize);
  if (size < 0) throw new Error(`the size of '${name}' is wrong`);
  return {
    name,
    kind: real,
    target: text('linkpath') ?? longTarget ?? cString(block.subarray(157, 257)),
    mode: number(block, 100, 8) & 0o7777,
    uid: id(decimal('uid', number(block, 108, 8))),
    gid: id(decimal('gid', number(block, 116, 8))),
    // Some tools repeat the size of the target with a link, without its content.
    size: real === 'file' ? size : 0,
    mtime: Math.max(0, decimal('mtime', number(block, 136, 12))),
    major: number(block, 329, 8),
    minor: number(block, 337, 8),
    xattrs: xattrsOf(pax),
  };
};

const id = (value: number): number => {
  if (!Number.isInteger(value) || value < 0 || value > 0xffff_ffff)
    throw new Error('an owner is not a number of 32 bits');
  return value;
};

const XATTR = 'SCHILY.xattr.';

const xattrsOf = (pax: Pax): Map<string, Buffer> =>
  new Map([...pax].filter(([key]) => key.startsWith(XATTR)).map(([key, value]) => [key.slice(XATTR.length), value]));

/** `LENGTH KEY=VALUE\n`, the length counting all of it. */
const parsePax = (content: Buffer): Pax => {
  const found: Pax = new Map();
  for (let at = 0; at < content.length; ) {
    const space = content.indexOf(0x20, at);
    const length = Number(content.toString('latin1', at, space < 0 ? at : space));
    const end = at + length;
    const equals = content.indexOf(0x3d, space);
    if (
      !Number.isInteger(length) ||
      space < 0 ||
      equals < 0 ||
      equals >= end ||
      end > content.length ||
      content[end - 1] !== 0x0a
    )
      throw new Error('an extended header is damaged');
    found.set(content.toString('latin1', space + 1, equals), content.subarray(equals + 1, end - 1));
    at = end;
  }
  return found;
};

const requireChecksum = (block: Buffer): void => {
  let sum = 8 * 0x20;
  for (let i = 0; i < BLOCK; i++) if (i < 148 || i >= 156) sum += block[i] as number;
  if (number(block, 148, 8) !== sum) throw new Error('it is not a tar archive, or a header is damaged');
};

const number = (block: Buffer, at: number, length: number): number => {
  const first = block[at] as number;
  if ((first & 0x80) !== 0) {
    // In binary, when it does not fit. Negative ones are times before 1970.
    if (first === 0xff) return 0;
    let value = first & 0x7f;
    for (let i = at + 1; i < at + length; i++) value = value * 256 + (block[i] as number);
    if (!Number.isSafeInteger(value)) throw new Error('a number in a header is too large');
    return value;
  }
  const text = cString(block.subarray(at, at + length)).trim();
  if (text === '') return 0;
  if (!/^[0-7]+$/.test(text)) throw new Error('a number in a header is wrong');
  return Number.parseInt(text, 8);
};

const cString = (bytes: Buffer): string => {
  const end = bytes.indexOf(0);
  return bytes.toString('latin1', 0, end < 0 ? bytes.length : end);
};

const padding = (size: number): number => (BLOCK - (size % BLOCK)) % BLOCK;
const shownName = (block: Buffer): string => cString(block.subarray(0, 100)).replace(/[^\x20-\x7e]/g, '?');
const ZERO = Buffer.alloc(BLOCK);
const isZero = (block: Buffer): boolean => block.equals(ZERO);
