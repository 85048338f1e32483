/**
 * Unpacks a pack of version 3. Everything is written into the store's staging directories and checked there; then the links of
 * the chain appear, base first. Names in the pack never become paths: they are compared with those that its manifest must have.
 */
import { closeSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { limits } from '../../contract/limits.js';
import {
  BLOCKS_FILE,
  MANIFEST_FILE,
  MEMORY_FILE,
  type SnapshotManifest,
  STATE_FILE,
  WORKING_SET_FILE,
} from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { type KnownChunks, verifyLayers } from '../memory/verify.js';
import type { OpenChain } from '../store/open-chain.js';
import type { Store } from '../store/store.js';
import type { Undo } from '../undo.js';
import { firstBytesToRuns, HEAD_RUNS, totalOf as totalBytes } from './first.js';
import {
  invalid,
  LINK_FILES,
  linkPath,
  PACK_MANIFEST,
  type PackFile,
  type PackManifest,
  readPackManifest,
  SMALL_LINK_FILES,
  sharedDisks,
} from './format.js';
import { ASIDE, type FrameFile, type LayerCheck, NOTHING, type Segment } from './frames.js';
import { Layout } from './layout.js';
import type { PackHooks } from './pack.js';
import { bytesToRuns } from './shared-pages.js';
import { checkSignature, PACK_SIGNATURE, SIGNATURE_BYTES } from './signature.js';
import { type Arrived, StagedChain, type StagedDisk } from './staged-chain.js';
import { decodeHeader, type TarHeader, TarReader } from './tar-reader.js';
import type { UnpackRequest } from './unpack.js';

/** Throws PACK_INVALID, PACK_UNREADABLE, PACK_UNTRUSTED, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, SNAPSHOT_HAS_DEPENDENTS, DISK_FULL; an Error with the reason for what is damaged. */
export const unpackFrames = async (
  store: Store,
  request: UnpackRequest,
  frames: FrameFile,
  undo: Undo,
  hooks: PackHooks,
): Promise<Arrived> => {
  const head = await readHead(request, new TarReader(frames.contents(), decodeHeader));
  requireSize(request.path, head.manifest, native.fdSize(frames.fd).bytes);
  return new Unpacking(store, request, head, frames, undo).run(hooks);
};

export interface Head {
  manifest: PackManifest;
  manifestBytes: number;
  isSigned: boolean;
  /** Of the first file. */
  header: TarHeader | undefined;
}

/** What is before the first file: the manifest, and its signature if there is one. Also the header of that file. */
export const readHead = async (
  { path, trusted = [] }: Pick<UnpackRequest, 'path' | 'trusted'>,
  tar: TarReader,
): Promise<Head> => {
  const first = await tar.next();
  if (first?.name !== PACK_MANIFEST) throw invalid(path, `it does not begin with ${PACK_MANIFEST}`);
  if (first.size > limits.packManifestMaxBytes) throw invalid(path, `${PACK_MANIFEST} is too large`);
  const text = await whole(tar, first);
  const second = await tar.next();
  const isSigned = second?.name === PACK_SIGNATURE;
  if (isSigned && second.size !== SIGNATURE_BYTES) throw invalid(path, 'its signature is of another size');
  // Before anything that a stranger wrote is parsed.
  checkSignature(path, text, isSigned ? await whole(tar, second) : undefined, trusted);
  const header = isSigned ? await tar.next() : second;
  return { manifest: readPackManifest(path, text), manifestBytes: text.length, isSigned, header };
};

export const whole = async (tar: TarReader, { size }: TarHeader): Promise<Buffer> => {
  const parts: Buffer[] = [];
  for await (const part of tar.body(size)) parts.push(Buffer.from(part));
  return Buffer.concat(parts);
};

export const totalOf = ({ files }: PackManifest): number => files.reduce((sum, file) => sum + file.size, 0);

export const requireSize = (path: string, manifest: PackManifest, packBytes: number): void => {
  const total = totalOf(manifest);
  if (total > limits.packTotalMaxBytes) throw invalid(path, `it unpacks to ${total} bytes, which is too much`);
  if (total > packBytes * limits.packRatioMax)
    throw invalid(path, `it unpacks to more than ${limits.packRatioMax} times its size`);
  for (const { path: name, size } of manifest.files) {
    if (name.endsWith(MANIFEST_FILE) && size > limits.snapshotJsonMaxBytes) throw invalid(path, `${name} is too large`);
    if (name.endsWith(`/${STATE_FILE}`) && size > limits.packStateMaxBytes) throw invalid(path, `${name} is too large`);
    if (LISTS.some((list) => name.endsWith(`/${list}`)) && size > limits.packPagesMaxBytes)
      throw invalid(path, `${name} is too large`);
    if (name.endsWith(`/${BLOCKS_FILE}`) && size > limits.packBlocksMaxBytes)
      throw invalid(path, `${name} is too large`);
  }
};

/** Held in memory. */
const LISTS = ['memory.pages', 'memory.runs', WORKING_SET_FILE];
/** Of each link, those that are files of a snapshot. */
const SMALL_FILES = [MANIFEST_FILE, STATE_FILE, WORKING_SET_FILE];

class Unpacking {
  readonly chain: StagedChain;
  readonly layout: Layout;

  constructor(
    store: Store,
    readonly request: UnpackRequest,
    readonly pack: Head,
    readonly frames: FrameFile,
    readonly undo: Undo,
  ) {
    const { manifest } = pack;
    this.layout = new Layout(manifest, pack.manifestBytes, pack.isSigned);
    const tags = manifest.chain.map(({ tag }) => tag);
    this.chain = new StagedChain(store, request, tags, totalOf(manifest), undo);
  }

  get manifest(): PackManifest {
    return this.pack.manifest;
  }

  async run(hooks: PackHooks): Promise<Arrived> {
    const small = await this.#readSmall();
    const { base, chain } = await this.#extract(small, hooks);
    const [manifests] = await settled([this.#check(chain, base), this.chain.sync()]);
    for (const { path } of this.#stagedDisks()) rmSync(path, { force: true });
    hooks.signal?.throwIfAborted();
    return this.chain.publish(manifests);
  }

  /** All but layers and disks, each held to its hash; what belongs to the snapshots is written. */
  async #readSmall(): Promise<Map<string, Buffer>> {
    const small = new Map<string, Buffer>();
    // Before anything is written.
    this.layout.gaps(this.frames.contentBytes);
    const wanted = this.chain.links.flatMap(({ from, staging }) =>
      SMALL_LINK_FILES.filter((name) => name !== 'memory.first').map((name) => {
        const { path, size, blake3 } = this.#entry(linkPath(from, name));
        return { path, size, blake3, name, staging };
      }),
    );
    const read = await this.frames.readParts(wanted.map(({ path, size }) => [this.layout.body(path), size]));
    for (const [i, { path, size, blake3, name, staging }] of wanted.entries()) {
      const content = read[i] as Buffer;
      if (native.blake3(content) !== blake3) throw new Error(`${path} has another hash than its manifest says`);
      small.set(path, content);
      if (!SMALL_FILES.includes(name) || (name === WORKING_SET_FILE && size === 0)) continue;
      // The manifest is written anew when the tag appears.
      writeFileSync(name === MANIFEST_FILE ? staging.file(name) : this.chain.create(staging.file(name)), content);
    }
    return small;
  }

  #entry(path: string): PackFile {
    return this.manifest.files.find((file) => file.path === path) as PackFile;
  }

  /** Layers and disks. Returns them as an open chain, and what is known of its base. */
  async #extract(small: Map<string, Buffer>, hooks: PackHooks): Promise<{ base: LayerCheck; chain: OpenChain }> {
    const total = totalOf(this.manifest);
    const segments: Segment[] = [];
    let base: LayerCheck | undefined;
    for (const { from, staging } of this.chain.links) {
      const [runs, pages] = ['memory.runs', 'memory.pages'].map((name) => small.get(linkPath(from, name)) as Buffer);
      const moved = firstBytesToRuns(runs as Buffer);
      if (totalBytes(moved) !== this.#entry(linkPath(from, 'memory.first')).size)
        throw new Error('memory.first has another size than its runs');
      const disks = sharedDisks(this.#entry(linkPath(from, 'memory.pages')));
      const places = this.layout.layerPlaces(from, moved, bytesToRuns(pages as Buffer), disks);
      const fd = this.chain.create(staging.file(MEMORY_FILE));
      // A layer has no zeros, and is written here and there.
      native.fdAllocate(fd, this.#entry(linkPath(from, MEMORY_FILE)).size);
      await this.#writeHead(fd, this.layout.body(linkPath(from, 'memory.first')), moved.slice(0, HEAD_RUNS));
      base ??= this.#openBase(fd);
      // The head is not written again: it is believed from here on.
      for (const place of places.slice(HEAD_RUNS)) segments.push([place[0], place[1], fd, place[2]]);
      for (const zeros of this.layout.elsewhere(from, places)) segments.push([zeros[0], zeros[1], NOTHING, 0]);
    }
    for (const { path, size, blake3 = '' } of this.disks) {
      const fd = this.chain.create(this.#disk(blake3));
      native.fdResize(fd, size);
      segments.push([this.layout.body(path), size, fd, 0]);
    }
    let aside = 0;
    for (const [begin, bytes] of this.layout.gaps(this.frames.contentBytes)) {
      segments.push([begin, bytes, ASIDE, aside]);
      aside += bytes;
    }
    const gaps = Buffer.alloc(aside);
    const split = this.layout.body(this.disks[0]?.path as string);
    const onProgress = (bytes: number): void => hooks.onProgress?.(Math.min(bytes, total), total);
    const parts = this.disks.map(({ path, size }): [number, number] => [this.layout.body(path), size]);
    const progress = { signal: hooks.signal, onProgress };
    const folder = openSync(this.chain.store.root, 'r');
    this.undo.push(() => closeSync(folder));
    const placing = this.frames.place(segments, gaps, split, parts, progress, { check: base, folder });
    // While others are at work: it needs no more than the heads.
    const [digests, chain] = await settled([placing, this.#openChain()]);
    this.layout.checkGaps(gaps);
    for (const [i, { path, blake3 }] of this.disks.entries())
      if (digests[i] !== blake3) throw new Error(`${path} has another hash than its manifest says`);
    return { base: base as LayerCheck, chain };
  }

  /** Header and index of a layer, before the rest of it. */
  async #writeHead(layer: number, begin: number, head: [number, number][]): Promise<void> {
    const bytes = totalBytes(head);
    if (bytes > limits.packStateMaxBytes) throw new Error('header and index of its memory are too large');
    const content = await this.frames.read(begin, bytes);
    let at = 0;
    for (const [offset, count] of head) at += native.fdWrite(layer, content.subarray(at, at + count), offset);
  }

  /** What comes of the base is held to its hashes while it is in memory. */
  #openBase(layer: number): LayerCheck {
    const source = native.sourceOpen([layer]);
    this.undo.push(() => void native.sourceClose(source));
    return { source, layer, known: new Uint8Array(native.sourceInfo(source).chunks) };
  }

  get disks(): PackFile[] {
    return this.manifest.files.slice(this.chain.links.length * LINK_FILES.length);
  }

  /** Disks are kept under their hashes until all links have them. */
  #disk(blake3: string): string {
    return this.chain.head.staging.file(`disk-${blake3}`);
  }

  #stagedDisks(): StagedDisk[] {
    return this.disks.map(({ size, blake3 = '' }) => ({ blake3, size, path: this.#disk(blake3) }));
  }

  async #openChain(): Promise<OpenChain> {
    const chain = this.chain.open();
    for (const [i, { manifest: m }] of chain.dirs.entries())
      if (m.memory_root !== this.manifest.chain[i]?.memory_root) throw new Error(`the root of '${m.tag}' is another`);
    return chain;
  }

  /** Reads every chunk that is not known to be right. */
  async #check(chain: OpenChain, base: KnownChunks): Promise<SnapshotManifest[]> {
    const { problems } = await verifyLayers(chain.layers, base);
    const [problem] = problems;
    if (problem) throw new Error(`memory of '${problem.tag}', chunk ${problem.chunk}: ${problem.reason}`);
    return this.chain.settle(chain, this.#stagedDisks());
  }
}

/** As Promise.all, but nothing is at work any more when it throws: files are closed then. */
const settled = async <T extends readonly unknown[] | []>(
  work: T,
): Promise<{ -readonly [K in keyof T]: Awaited<T[K]> }> => {
  await Promise.allSettled(work);
  return Promise.all(work);
};
