/**
 * Unpacks a pack of version 1 or 2: one stream, read once, from which each memory image becomes a layer as it arrives. Only what the manifest names is
 * taken, each file to its size and SHA-256. What runs here is what QEMU saved; of any other engine's packs the root disk can be had.
 */
import { createHash, type Hash } from 'node:crypto';
import { rmSync } from 'node:fs';
import { setImmediate as others } from 'node:timers/promises';
import { ForkdError } from '../../../contract/errors.js';
import { limits } from '../../../contract/limits.js';
import { MANIFEST_FILE, MEMORY_FILE, STATE_FILE } from '../../../contract/snapshot.js';
import { MiB } from '../../../contract/units.js';
import { native } from '../../../native/binding.js';
import { whileAtWork } from '../../native-threads.js';
import type { Store } from '../../store/store.js';
import type { Undo } from '../../undo.js';
import { invalid, PACK_MANIFEST } from '../format.js';
import type { PackHooks } from '../pack.js';
import { type Arrived, StagedChain, type StagedDisk, type StagedLink } from '../staged-chain.js';
import { TarReader } from '../tar-reader.js';
import type { OpenRequest, UnpackRequest } from '../unpack.js';
import { ImageLayer, type ParentImage } from './image-layer.js';
import {
  entryName,
  fileOf,
  linksOf,
  MEMORY_IMAGE,
  type PlainFile,
  type PlainFileName,
  type PlainLink,
  type PlainManifest,
  readPlainManifest,
  ROOTFS,
} from './manifest.js';
import { besidePack, type DiskFacts, readSidecar, sidecarName } from './sidecar.js';
import { SparseFile } from './sparse-file.js';
import { decodePlainHeader, type PlainHeader, placesOf } from './tar.js';
import { contentOf } from './version.js';

/** Throws PACK_INVALID, PACK_OTHER_ENGINE, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, SNAPSHOT_HAS_DEPENDENTS, DISK_FULL; an Error with the reason for what is damaged. */
export const unpackPlain = async (
  store: Store,
  request: UnpackRequest,
  fd: number,
  undo: Undo,
  hooks: PackHooks,
): Promise<Arrived> => {
  const archive = await Archive.open(request, fd, undo, hooks);
  return new Unpacking(store, request, archive, undo, hooks).run();
};

/** Writes the root disk of the pack into a new file, and returns its bytes. Throws PACK_INVALID; an Error for what is damaged. */
export const takePlainDisk = async (
  request: OpenRequest,
  fd: number,
  into: number,
  undo: Undo,
  hooks: PackHooks,
): Promise<number> => {
  const archive = await Archive.open(request, fd, undo, hooks);
  const head = archive.links.at(-1) as PlainLink;
  const wanted = fileOf(head, ROOTFS);
  if (!wanted) {
    const { rootfs } = archive.manifest;
    if (!rootfs) throw new Error('it names no root disk');
    await fetchSidecar(request, rootfs, into, {
      ...hooks,
      onProgress: (done) => hooks.onProgress?.(done, rootfs.size),
    });
    return rootfs.size;
  }
  for await (const { link, name, content } of archive.entries()) {
    if (link !== head || name !== ROOTFS) {
      for await (const _ of content.parts);
      continue;
    }
    await copy(content, into);
    return wanted.size;
  }
  throw new Error(`it has no ${ROOTFS}`);
};

const fetchSidecar = async (
  { path, sidecar = besidePack(path) }: OpenRequest,
  facts: DiskFacts,
  into: number,
  hooks: { signal?: AbortSignal; onProgress?: (bytes: number) => void },
): Promise<void> => {
  const name = sidecarName(facts.sha256);
  const found = await sidecar(name);
  if (!found) throw new ForkdError('PACK_SIDECAR_MISSING', { path, name });
  try {
    await readSidecar(found.path, facts, into, hooks);
  } finally {
    found.close();
  }
};

/** Of a file: how long it is, and what it has, ascending; between that are holes. All parts are to be read. */
interface Content {
  bytes: number;
  hasHoles: boolean;
  parts: AsyncIterable<{ at: number; part: Buffer }>;
}

interface Entry {
  link: PlainLink;
  name: PlainFileName;
  content: Content;
}

/** The stream behind its manifest. */
class Archive {
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
    const total = linksOf(manifest).reduce((sum, { files }) => sum + bytesOf(files), 0);
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
    return { bytes, hasHoles: header.sparse !== undefined, parts: this.#parts(header, file, runs, done) };
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

const bytesOf = (files: PlainFile[]): number => files.reduce((sum, { size }) => sum + size, 0);

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

/** Of a chain, all have the size of its guest. Throws PACK_INVALID. */
const requireImages = (path: string, links: PlainLink[]): void => {
  const sizes = links.map((link) => (fileOf(link, MEMORY_IMAGE) as PlainFile).size);
  const isGuest = (size: number) => size % MiB === 0 && size <= limits.memoryMaxMib * MiB;
  if (!sizes.every((size) => isGuest(size) && size === sizes[0]))
    throw invalid(path, `${MEMORY_IMAGE} has a size that no guest has`);
};

/** At most, but for memory that is the parent's. */
const neededBytes = (manifest: PlainManifest): number =>
  linksOf(manifest).reduce(
    (sum, link, i) => sum + bytesOf(link.files.filter(({ path }) => i === 0 || path !== MEMORY_IMAGE)),
    manifest.rootfs?.size ?? 0,
  );

class Unpacking {
  readonly chain: StagedChain;
  readonly disks: StagedDisk[] = [];
  /** By the tag in the pack. */
  readonly #said = new Map<string, Record<string, unknown>>();
  readonly #images = new Map<string, ParentImage>();
  /** Base first. */
  readonly #layers: number[] = [];

  constructor(
    readonly store: Store,
    readonly request: UnpackRequest,
    readonly archive: Archive,
    readonly undo: Undo,
    readonly hooks: PackHooks,
  ) {
    const { manifest } = archive;
    requireImages(request.path, archive.links);
    const tags = archive.links.map(({ tag }) => tag);
    this.chain = new StagedChain(store, request, tags, neededBytes(manifest), undo);
  }

  async run(): Promise<Arrived> {
    const { links } = this.archive;
    for await (const { link, name, content } of this.archive.entries())
      await this.#take(link, links[links.indexOf(link) - 1], name, content);
    await this.#takeSidecar();
    for (const link of this.chain.links) this.#describe(link);
    const manifests = this.chain.settle(this.chain.open(), this.disks);
    await this.chain.sync();
    for (const { path } of this.disks) rmSync(path);
    this.hooks.signal?.throwIfAborted();
    return this.chain.publish(manifests);
  }

  async #take(link: PlainLink, parent: PlainLink | undefined, name: PlainFileName, content: Content): Promise<void> {
    const { staging } = this.chain.links.find(({ from }) => from === link.tag) as StagedLink;
    if (name === MANIFEST_FILE) this.#said.set(link.tag, await this.#readSaid(link, content));
    else if (name === MEMORY_IMAGE)
      this.#images.set(link.tag, await this.#takeImage(content, parent, staging.file(MEMORY_FILE)));
    else if (name === STATE_FILE) await copy(content, this.chain.create(staging.file(STATE_FILE)));
    else await this.#takeDisk((fd) => copy(content, fd));
  }

  /** Of what QEMU saved, snapshot.json says so; without that nothing here can run it, and the rest need not be read. */
  async #readSaid(link: PlainLink, content: Content): Promise<Record<string, unknown>> {
    const text: Buffer[] = [];
    for await (const { part } of content.parts) text.push(Buffer.from(part));
    const said = JSON.parse(Buffer.concat(text).toString()) as { vmm?: { name?: unknown }; tag?: unknown };
    if (said?.vmm?.name !== 'qemu') throw this.#otherEngine();
    if (said.tag !== link.tag) throw new Error(`the ${MANIFEST_FILE} of '${link.tag}' is of another tag`);
    return said as Record<string, unknown>;
  }

  #otherEngine(): ForkdError {
    return new ForkdError('PACK_OTHER_ENGINE', { path: this.request.path });
  }

  async #takeImage(content: Content, parent: PlainLink | undefined, path: string): Promise<ParentImage> {
    const below = parent && this.#images.get(parent.tag);
    if (parent && !below) throw new Error(`the memory of '${parent.tag}' does not come before its child's`);
    const fd = this.chain.create(path);
    const layer = new ImageLayer(fd, content.bytes, below, content.hasHoles);
    try {
      for await (const { at, part } of content.parts) layer.write(at, part);
      const root = layer.finish();
      this.#layers.push(fd);
      const source = native.sourceOpen(this.#layers);
      this.undo.push(() => void native.sourceClose(source));
      // That was its only child; of a long chain of large guests all would be gigabytes.
      if (below) native.sourceClose(below.source);
      return { source, root };
    } finally {
      layer.close();
    }
  }

  /** Known by its content from here on: which link has it as what, its snapshot.json says. */
  async #takeDisk(write: (fd: number) => Promise<void>): Promise<void> {
    const path = this.chain.head.staging.file(`disk-${this.disks.length}`);
    const fd = this.chain.create(path);
    await write(fd);
    const { blake3, bytes } = await whileAtWork(() => native.fdBlake3(fd));
    this.disks.push({ blake3, size: bytes, path });
  }

  async #takeSidecar(): Promise<void> {
    const { rootfs } = this.archive.manifest;
    const { request, hooks } = this;
    const { signal } = hooks;
    if (rootfs) await this.#takeDisk((fd) => fetchSidecar(request, rootfs, fd, signal ? { signal } : {}));
  }

  /** Writes what the link says of itself, with the layer that its memory has become. What it says is checked when the chain is opened. */
  #describe({ from, staging }: StagedLink): void {
    const said = this.#said.get(from);
    if (!said) throw this.#otherEngine();
    const { links } = this.archive;
    const parent = links[links.findIndex(({ tag }) => tag === from) - 1];
    const { root: memory_root } = this.#images.get(from) as ParentImage;
    const below = parent ? { parent_content_hash: this.#images.get(parent.tag)?.root } : {};
    const text = JSON.stringify({ ...said, ...below, memory_root, vmstate: STATE_FILE, memory: MEMORY_FILE });
    const fd = this.chain.create(staging.file(MANIFEST_FILE));
    native.fdWrite(fd, Buffer.from(text), 0);
  }
}

const copy = async ({ bytes, parts }: Content, fd: number): Promise<void> => {
  const file = new SparseFile(fd);
  for await (const { at, part } of parts) {
    file.bytes = at;
    file.write(part);
  }
  file.bytes = bytes;
  file.end();
};
