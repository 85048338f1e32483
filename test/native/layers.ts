/** What the tests of layers share: files, images, and a maker of layer files that is not the addon's. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CHUNK_BYTES, PageMap } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import { random } from '../support/random.js';

export const PAGE_BYTES = 4096;
export const HEADER_BYTES = 4096;
export const ENTRY_BYTES = 56;
/** Where things are in the header, and in an entry of the index. */
export const HEADER = {
  magic: 0,
  version: 8,
  chunkBytes: 12,
  imageBytes: 16,
  indexOffset: 24,
  entryCount: 32,
  dataBytes: 40,
  parentRoot: 48,
  root: 80,
  padding: 112,
};
export const ENTRY = { chunk: 0, dataMask: 4, zeroMask: 6, offset: 8, storedBytes: 16, codec: 20, hash: 24 };

export const PAGES_PER_CHUNK = CHUNK_BYTES / PAGE_BYTES;

export const raw = { chunkBytes: CHUNK_BYTES, zstdLevel: 0 };
export const packed = { chunkBytes: CHUNK_BYTES, zstdLevel: 3 };

/** A folder that goes away with the descriptors opened in it. */
export class Files {
  readonly folder = mkdtempSync(join(tmpdir(), 'forkd-layer-'));
  readonly #fds: number[] = [];
  #next = 0;

  /** A new file with these contents. */
  file(contents?: Uint8Array): number {
    const path = join(this.folder, `file-${this.#next++}`);
    if (contents) writeFileSync(path, contents);
    return this.keep(openSync(path, contents ? 'r+' : 'w+'));
  }

  memory(contents: Uint8Array | number): number {
    const fd = this.keep(native.memfdCreate('image'));
    native.fdResize(fd, typeof contents === 'number' ? contents : contents.length);
    if (typeof contents !== 'number') native.fdWrite(fd, contents, 0);
    return fd;
  }

  keep(fd: number): number {
    this.#fds.push(fd);
    return fd;
  }

  remove(): void {
    for (const fd of this.#fds.splice(0)) closeSync(fd);
    rmSync(this.folder, { recursive: true, force: true });
  }
}

export const contents = (fd: number): Buffer => readFileSync(`/proc/self/fd/${fd}`);

/** The whole image of a chain, read chunk by chunk. */
export function imageOf(layers: number[]): Buffer {
  const handle = native.sourceOpen(layers);
  try {
    const { imageBytes, chunks } = native.sourceInfo(handle);
    const image = Buffer.alloc(chunks * CHUNK_BYTES);
    for (let chunk = 0; chunk < chunks; chunk++) {
      const at = image.subarray(chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
      at.fill(0xee); // what was there before must not matter
      native.sourceRead(handle, chunk, at);
    }
    return image.subarray(0, imageBytes);
  } finally {
    native.sourceClose(handle);
  }
}

/** A memfd filled from a chain. */
export function memoryOf(files: Files, layers: number[]): number {
  const handle = native.sourceOpen(layers);
  const { imageBytes, chunks } = native.sourceInfo(handle);
  const memfd = files.memory(imageBytes);
  native.sourceFill(handle, PageMap.create(imageBytes).states, 0, chunks, memfd);
  native.sourceClose(handle);
  return memfd;
}

/** The page that private-subject.c writes for a seed. */
export function pageOf(seed: number): Buffer {
  const words = Uint32Array.from({ length: PAGE_BYTES / 4 }, (_, i) => seed + Math.imul(i % 64, seed | 1));
  return Buffer.from(words.buffer);
}

/** An image of `chunks` chunks with every kind of page in it. */
export function mixedImage(chunks: number, seed = 1): Buffer {
  const below = random(seed);
  const image = Buffer.alloc(chunks * CHUNK_BYTES);
  for (let page = 0; page < image.length / PAGE_BYTES; page++) {
    const at = image.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
    const kind = below(8);
    if (kind < 2 || Math.floor(page / PAGES_PER_CHUNK) % 5 === 4) continue; // zero, and whole chunks of it
    if (kind < 5) pageOf(below(1000)).copy(at);
    else for (let i = 0; i < PAGE_BYTES; i += 4) at.writeUInt32LE(below(2 ** 32), i);
  }
  return image;
}

/** Gives a changed layer file the root that fits it. */
export function sign(file: Buffer): Buffer {
  const index = Number(file.readBigUInt64LE(HEADER.indexOffset));
  const covered = Buffer.concat([file.subarray(0, HEADER.root), file.subarray(Math.min(index, file.length))]);
  Buffer.from(native.blake3(covered), 'hex').copy(file, HEADER.root);
  return file;
}

/** A copy of `file` changed by `edit`. */
export function edited(file: Uint8Array, edit: (copy: Buffer) => void): Buffer {
  const copy = Buffer.from(file);
  edit(copy);
  return copy;
}

/** Where entry `i` of the index begins. */
export const entryAt = (file: Buffer, i: number): number =>
  Number(file.readBigUInt64LE(HEADER.indexOffset)) + i * ENTRY_BYTES;
