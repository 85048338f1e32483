/** The files of an image as it lies on a disk: a directory, or a tar archive that is read where it is. */
import { closeSync, createReadStream, createWriteStream, fstatSync, lstatSync, openSync, readFileSync } from 'node:fs';
import { join, posix } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGunzip } from 'node:zlib';
import { limits } from '../../contract/limits.js';
import { fileParts } from '../file-parts.js';
import { unzstd } from '../zstd.js';
import { FileBytes, readTar } from './tar.js';

const READ_BYTES = 1024 * 1024;

export interface Files {
  has(name: string): boolean;
  /** Throws an Error when it is not there or is larger than a JSON document of an image. */
  json(name: string): Promise<Buffer>;
  size(name: string): number;
  /** Each part is valid until the next is asked for. */
  open(name: string): AsyncIterable<Buffer>;
  close(): void;
}

const missing = (name: string): Error => new Error(`it has no ${name}`);
const requireSmall = (name: string, size: number): void => {
  if (size > limits.imageJsonMaxBytes) throw new Error(`${name} is too large`);
};

/** Throws an Error for a name that leads out. */
const safe = (name: string): string => {
  const clean = posix.normalize(name).replace(/^\.\//, '');
  if (clean.startsWith('/') || clean === '..' || clean.startsWith('../'))
    throw new Error(`the name '${name}' leads out`);
  return clean;
};

export class DirFiles implements Files {
  constructor(readonly dir: string) {}

  has(name: string): boolean {
    return lstatSync(join(this.dir, safe(name)), { throwIfNoEntry: false })?.isFile() === true;
  }

  async json(name: string): Promise<Buffer> {
    requireSmall(name, this.size(name));
    return readFileSync(join(this.dir, safe(name)));
  }

  size(name: string): number {
    if (!this.has(name)) throw missing(name);
    return lstatSync(join(this.dir, safe(name))).size;
  }

  open(name: string): AsyncIterable<Buffer> {
    if (!this.has(name)) throw missing(name);
    return fileParts(join(this.dir, safe(name)));
  }

  close(): void {}
}

interface Place {
  offset: number;
  size: number;
}

export class TarFiles implements Files {
  private constructor(
    readonly path: string,
    readonly places: Map<string, Place>,
  ) {}

  /** Reads the headers only. Throws an Error when it is not an archive. */
  static async read(path: string): Promise<TarFiles> {
    const places = new Map<string, Place>();
    const links: [name: string, target: string][] = [];
    const fd = openSync(path, 'r');
    try {
      const bytes = new FileBytes(fd, fstatSync(fd).size);
      for await (const { entry } of readTar(bytes)) {
        const name = posix.normalize(entry.name).replace(/^\.?\//, '');
        if (entry.kind === 'file') places.set(name, { offset: bytes.at, size: entry.size });
        // docker save of old: a layer that occurs twice.
        else if (entry.kind === 'symlink') links.push([name, posix.join(posix.dirname(name), entry.target)]);
        else if (entry.kind === 'link') links.push([name, posix.normalize(entry.target)]);
      }
    } finally {
      closeSync(fd);
    }
    for (const [name, target] of links) {
      const place = places.get(target);
      if (place) places.set(name, place);
    }
    return new TarFiles(path, places);
  }

  has(name: string): boolean {
    return this.places.has(safe(name));
  }

  async json(name: string): Promise<Buffer> {
    requireSmall(name, this.size(name));
    const parts: Buffer[] = [];
    for await (const part of this.open(name)) parts.push(Buffer.from(part));
    return Buffer.concat(parts);
  }

  size(name: string): number {
    return this.#place(name).size;
  }

  open(name: string): AsyncIterable<Buffer> {
    const { offset, size } = this.#place(name);
    return fileParts(this.path, { start: offset, size });
  }

  close(): void {}

  #place(name: string): Place {
    const place = this.places.get(safe(name));
    if (!place) throw missing(name);
    return place;
  }
}

const MAGICS: [kind: 'gzip' | 'zstd', magic: number[]][] = [
  ['gzip', [0x1f, 0x8b]],
  ['zstd', [0x28, 0xb5, 0x2f, 0xfd]],
];

/** How a stream is compressed, by what it begins with; and all of it again. */
export const sniff = async (
  source: AsyncIterable<Buffer>,
): Promise<{ kind: 'gzip' | 'zstd' | 'plain'; whole: AsyncGenerator<Buffer> }> => {
  const iterator = source[Symbol.asyncIterator]();
  const held: Buffer[] = [];
  for (let bytes = 0; bytes < 4; ) {
    const { value, done } = await iterator.next();
    if (done) break;
    held.push(Buffer.from(value));
    bytes += value.length;
  }
  const head = Buffer.concat(held).subarray(0, 4);
  const kind = MAGICS.find(([, magic]) => magic.every((byte, i) => head[i] === byte))?.[0] ?? 'plain';
  const whole = async function* () {
    try {
      yield* held;
      for (let next = await iterator.next(); !next.done; next = await iterator.next()) yield next.value;
    } finally {
      await iterator.return?.();
    }
  };
  return { kind, whole: whole() };
};

/** The content of a stream, decompressed if it is compressed, and not more of it than a layer can have. Throws an Error. */
export async function* decompressed(source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let packed = 0;
  const counted = async function* (parts: AsyncIterable<Buffer>) {
    for await (const part of parts) {
      packed += part.length;
      // The inflater has several at once.
      yield Buffer.from(part);
    }
  };
  const { kind, whole } = await sniff(source);
  let bytes = 0;
  for await (const part of kind === 'plain' ? whole : inflated(kind, counted(whole))) {
    bytes += part.length;
    if (bytes > limits.imageContentMaxBytes) throw new Error('it unpacks to too much');
    if (kind !== 'plain' && bytes > limits.layerRatioFromBytes && bytes > packed * limits.layerRatioMax)
      throw new Error(`it unpacks to more than ${limits.layerRatioMax} times its size`);
    yield part;
  }
}

async function* inflated(kind: 'gzip' | 'zstd', source: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  if (kind === 'zstd') {
    // Whoever writes them has several at once.
    for await (const part of unzstd(source)) yield Buffer.from(part);
    return;
  }
  const inflater = createGunzip({ chunkSize: READ_BYTES });
  const feeding = pipeline(source, inflater);
  // The reader meets the same error.
  feeding.catch(() => undefined);
  try {
    yield* inflater as AsyncIterable<Buffer>;
    await feeding;
  } finally {
    inflater.destroy();
  }
}

/** Writes what a compressed archive holds, so that it can be read where it is. */
export const decompressTo = async (path: string, out: string, signal?: AbortSignal): Promise<void> => {
  await pipeline(
    decompressed(createReadStream(path, { highWaterMark: READ_BYTES })),
    createWriteStream(out, { flags: 'wx' }),
    ...(signal ? [{ signal }] : []),
  );
};
