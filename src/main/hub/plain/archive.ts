/** The stream of a pack of version 1 or 2, entry by entry: each is one that the manifest names, of its size and SHA-256, there once. */
import { createHash, type Hash } from 'node:crypto';
import { setImmediate as others } from 'node:timers/promises';
import { limits } from '../../../contract/limits.js';
import { MANIFEST_FILE, STATE_FILE } from '../../../contract/snapshot.js';
import { native } from '../../../native/binding.js';
import type { Undo } from '../../undo.js';
import { invalid, PACK_MANIFEST } from '../format.js';
import type { PackHooks } from '../pack.js';
import { TarReader } from '../tar-reader.js';
import type { OpenRequest } from '../unpack.js';
import {
  entryName,
  fileOf,
  linksOf,
  type PlainFile,
  type PlainFileName,
  type PlainLink,
  type PlainManifest,
  readPlainManifest,
} from './manifest.js';
import { SparseFile } from '../../sparse-file.js';
import { decodePlainHeader, type PlainHeader, placesOf } from './tar.js';
import { contentOf } from './version.js';

/** Of a file: how long it is, and what it has, ascending; between that are holes. All parts are to be read. */
export interface Content {
  bytes: number;
  parts: AsyncIterable<{ at: number; part: Buffer }>;
}

export interface Entry {
  link: PlainLink;
  name: PlainFileName;
  content: Content;
}

/** The stream behind its manifest. */
export class Archive {
  /** Base first. */
  readonly links: PlainLink[];

  private constructor(
    readonly manifest: PlainManifest,
    readonly tar: TarReader<PlainHeader>,
    readonly total: number,
    readonly hooks: PackHooks,
  ) {
    this.links = linksOf(manifest);
  }

  static async open({ path }: OpenRequest, fd: number, undo: Undo, hooks: PackHooks): Promise<Archive> {
    const content = contentOf(fd);
    undo.push(async () => void (await content.return(undefined)));
    const tar = new TarReader(content, decodePlainHeader);
    const header = await tar.next();
    if (header?.name !== PACK_MANIFEST || header.size > limits.packManifestMaxBytes)
      throw new Error(`it does not begin with ${PACK_MANIFEST}`);
    const text: Buffer[] = [];
    for await (const part of tar.body(header.size)) text.push(Buffer.from(part));
    const manifest = readPlainManifest(path, Buffer.concat(text));
    const total = linksOf(manifest).reduce((sum, { files }) => sum + totalBytes(files), 0);
    requireSize(path, manifest, total, native.fdSize(fd).bytes);
    return new Archive(manifest, tar, total, hooks);
  }

  /** Each entry must be read before the next. Throws an Error for one that the manifest does not name, that is there twice, or missing. */
  async *entries(): AsyncGenerator<Entry> {
    const wanted = new Map<string, { link: PlainLink; file: PlainFile }>();
    for (const link of this.links)
      for (const file of link.files) wanted.set(entryName(this.manifest, link, file.path), { link, file });
    let done = 0;
    for (let header = await this.tar.next(); header; header = await this.tar.next()) {
      const found = wanted.get(header.name);
      if (!found) throw new Error(`entry ${JSON.stringify(header.name)} is not in its manifest, or there twice`);
      wanted.delete(header.name);
      const { link, file } = found;
      yield { link, name: file.path, content: await this.#contentOf(header, file, done) };
      done += file.size;
    }
    const [missing] = wanted.keys();
    if (missing !== undefined) throw new Error(`${missing} is missing`);
  }

  async #contentOf(header: PlainHeader, file: PlainFile, done: number): Promise<Content> {
    const { bytes, runs } = await placesOf(this.tar, header);
    if (bytes !== file.size) throw new Error(`${header.name} has another size than its manifest says`);
    return { bytes, parts: this.#parts(header, file, runs, done) };
  }

  /** Held to the file's hash, in which holes are zeros. */
  async *#parts(
    { name, size }: PlainHeader,
    file: PlainFile,
    runs: [number, number][],
    done: number,
  ): AsyncGenerator<{ at: number; part: Buffer }> {
    const { signal, onProgress } = this.hooks;
    const hash = createHash('sha256');
    let at = 0;
    const skip = async (to: number): Promise<void> => {
      await hashZeros(hash, to - at, signal);
      at = to;
    };
    const places = runs[Symbol.iterator]();
    let [begin, left] = places.next().value ?? [0, 0];
    for await (let part of this.tar.body(size)) {
      signal?.throwIfAborted();
      while (part.length > 0) {
        if (at < begin) await skip(begin);
        const piece = part.subarray(0, left);
        hash.update(piece);
        yield { at, part: piece };
        at += piece.length;
        left -= piece.length;
        part = part.subarray(piece.length);
        if (left === 0) [begin, left] = places.next().value ?? [file.size, 0];
      }
      onProgress?.(done + at, this.total);
    }
    await skip(file.size);
    if (hash.digest('hex') !== file.sha256) throw new Error(`${name} has another hash than its manifest says`);
  }
}

const ZEROS = Buffer.alloc(1024 * 1024);

/** A hole may be of gigabytes: signals get their turn. */
const hashZeros = async (hash: Hash, bytes: number, signal: AbortSignal | undefined): Promise<void> => {
  for (let left = bytes; left > 0; left -= ZEROS.length) {
    hash.update(ZEROS.subarray(0, left));
    if (left <= ZEROS.length) return;
    await others();
    signal?.throwIfAborted();
  }
};

export const totalBytes = (files: PlainFile[]): number => files.reduce((sum, { size }) => sum + size, 0);

const requireSize = (path: string, manifest: PlainManifest, total: number, packBytes: number): void => {
  if (total + (manifest.rootfs?.size ?? 0) > limits.packTotalMaxBytes)
    throw invalid(path, `it unpacks to ${total} bytes, which is too much`);
  if (total > packBytes * limits.packRatioMax)
    throw invalid(path, `it unpacks to more than ${limits.packRatioMax} times its size`);
  for (const link of linksOf(manifest)) {
    const { size: state } = fileOf(link, STATE_FILE) as PlainFile;
    if (state > limits.packStateMaxBytes) throw invalid(path, `${STATE_FILE} is too large`);
    if ((fileOf(link, MANIFEST_FILE)?.size ?? 0) > limits.snapshotJsonMaxBytes)
      throw invalid(path, `${MANIFEST_FILE} is too large`);
  }
};

/** Writes an entry into a new file, with its holes. */
export const copyEntry = async ({ bytes, parts }: Content, fd: number): Promise<void> => {
  const file = new SparseFile(fd);
  for await (const { at, part } of parts) {
    file.bytes = at;
    file.write(part);
  }
  file.bytes = bytes;
  file.end();
};
