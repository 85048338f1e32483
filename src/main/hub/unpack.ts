/**
 * Unpacks a pack of version 3. Everything is written into the store's staging directories and checked there; then the links of
 * the chain appear, base first. Names in the pack never become paths: they are compared with those that its manifest must have.
 */
import { type KeyObject, randomBytes } from 'node:crypto';
import { closeSync, fsync, linkSync, mkdirSync, openSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { parseTag } from '../../contract/names.js';
import {
  BLOCKS_FILE,
  type FileDigest,
  MANIFEST_FILE,
  MEMORY_FILE,
  type SnapshotManifest,
  STATE_FILE,
  WORKING_SET_FILE,
} from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { fileParts } from '../file-parts.js';
import { type KnownChunks, verifyLayers } from '../memory/verify.js';
import { OpenChain } from '../store/open-chain.js';
import type { Staging } from '../store/staging.js';
import type { Store } from '../store/store.js';
import { Undo } from '../undo.js';
import { decrypted, isEncrypted } from './age.js';
import { firstBytesToRuns, HEAD_RUNS, totalOf as totalBytes } from './first.js';
import { readForeign } from './foreign.js';
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
import { ASIDE, FrameFile, type LayerCheck, NOTHING, type Segment } from './frames.js';
import { Layout } from './layout.js';
import type { PackHooks } from './pack.js';
import { bytesToRuns } from './shared-pages.js';
import { checkSignature, PACK_SIGNATURE, SIGNATURE_BYTES } from './signature.js';
import { type TarHeader, TarReader } from './tar-reader.js';

export interface UnpackRequest {
  path: string;
  /** Another name for the head of the chain. */
  tag?: string;
  force?: boolean;
  /** Public keys; given any, the pack must be signed by one of them. */
  trusted?: KeyObject[];
  /** Secret keys of age, for a pack that is encrypted. */
  identities?: string[];
}

export interface Unpacked {
  tag: string;
  dir: string;
  /** Tags that appeared, base first; ancestors that were there already are not among them. */
  made: string[];
}

/**
 * Throws PACK_INVALID, PACK_UNREADABLE, PACK_UNTRUSTED, PACK_ENCRYPTED, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, SNAPSHOT_HAS_DEPENDENTS, DISK_FULL, CANCELLED;
 * then the store is as it was.
 */
export const unpack = async (store: Store, request: UnpackRequest, hooks: PackHooks = {}): Promise<Unpacked> => {
  const { path } = request;
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) throw invalid(path, 'there is no such file');
  const undo = new Undo();
  try {
    const fd = isEncrypted(path) ? await openDecrypted(store, request) : openSync(path, 'r');
    undo.push(() => closeSync(fd));
    const { frames, head } = await begin(request, fd);
    requireSize(path, head.manifest, native.fdSize(fd).bytes);
    return await new Unpacking(store, request, head, frames, undo).run(hooks);
  } catch (error) {
    if (hooks.signal?.aborted) throw new ForkdError('CANCELLED');
    throw error instanceof ForkdError || isOfTheSystem(error) ? error : invalid(path, reasonOf(error), error);
  } finally {
    await undo.run();
  }
};

/** The content of an encrypted pack, in a file without a name: what is read here and there must be somewhere. */
const openDecrypted = async (store: Store, { path, identities = [] }: UnpackRequest): Promise<number> => {
  const content = await decrypted(path, fileParts(path), identities);
  mkdirSync(store.root, { recursive: true });
  const name = join(store.root, `.decrypted-${randomBytes(6).toString('hex')}`);
  const fd = openSync(name, 'wx+', 0o600);
  rmSync(name);
  try {
    let at = 0;
    for await (const part of content) at += native.fdWrite(fd, part, at);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
};

const begin = async (request: UnpackRequest, fd: number): Promise<{ frames: FrameFile; head: Head }> => {
  try {
    const frames = FrameFile.of(fd);
    return { frames, head: await readHead(request, new TarReader(frames.contents())) };
  } catch (error) {
    if (!(error instanceof ForkdError)) await readForeign(request.path);
    throw error;
  }
};

const isOfTheSystem = (error: unknown): boolean => typeof (error as NodeJS.ErrnoException).syscall === 'string';

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
  }
};

/** Held in memory. */
const LISTS = ['memory.pages', BLOCKS_FILE, 'memory.runs', WORKING_SET_FILE];
/** Of each link, those that are files of a snapshot. */
const SMALL_FILES = [MANIFEST_FILE, STATE_FILE, WORKING_SET_FILE];

interface PackedLink {
  /** Its name in the pack, and here. */
  from: string;
  to: string;
  staging: Staging;
}

class Unpacking {
  readonly links: PackedLink[] = [];
  /** Ancestors that have appeared while the head has not, newest first. */
  readonly half: string[] = [];
  /** Files that may not yet be on the disk. */
  readonly created: number[] = [];
  readonly layout: Layout;

  constructor(
    readonly store: Store,
    readonly request: UnpackRequest,
    readonly pack: Head,
    readonly frames: FrameFile,
    readonly undo: Undo,
  ) {
    const { manifest } = pack;
    this.layout = new Layout(manifest, pack.manifestBytes, pack.isSigned);
    const head = request.tag === undefined ? manifest.tag : parseTag(request.tag);
    if (manifest.chain.slice(0, -1).some((link) => link.tag === head))
      throw invalid(request.path, `'${head}' is the name of an ancestor in it`);
    if (store.exists(head) && !request.force) throw new ForkdError('SNAPSHOT_EXISTS', { tag: head });
    // Undone last: a removal takes the lock that is held until then.
    undo.push(() => this.half.forEach((tag) => void store.remove(tag)));
    store.requireSpace(totalOf(manifest));
    for (const { tag: from } of manifest.chain) {
      const to = from === manifest.tag ? head : from;
      const lock = store.lock(to);
      undo.push(() => lock.release());
      const staging = store.stage(to);
      undo.push(() => staging.discard());
      this.links.push({ from, to, staging });
    }
  }

  get head(): PackedLink {
    return this.links.at(-1) as PackedLink;
  }

  get manifest(): PackManifest {
    return this.pack.manifest;
  }

  async run(hooks: PackHooks): Promise<Unpacked> {
    const small = await this.#readSmall();
    const { base, chain } = await this.#extract(small, hooks);
    const [manifests] = await settled([this.#check(chain, base), ...this.created.map((fd) => sync(fd))]);
    for (const { blake3 = '' } of this.disks) rmSync(this.#disk(blake3), { force: true });
    hooks.signal?.throwIfAborted();
    const made: string[] = [];
    for (const [i, link] of this.links.entries()) {
      if (!this.#publish(link, manifests[i] as SnapshotManifest)) continue;
      made.push(link.to);
      if (link !== this.head) this.half.unshift(link.to);
    }
    this.half.length = 0;
    return { tag: this.head.to, dir: this.store.dir(this.head.to), made };
  }

  /** All but layers and disks, each held to its hash; what belongs to the snapshots is written. */
  async #readSmall(): Promise<Map<string, Buffer>> {
    const small = new Map<string, Buffer>();
    // Before anything is written.
    this.layout.gaps(this.frames.contentBytes);
    const wanted = this.links.flatMap(({ from, staging }) =>
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
      writeFileSync(name === MANIFEST_FILE ? staging.file(name) : this.#create(staging.file(name)), content);
    }
    return small;
  }

  #entry(path: string): PackFile {
    return this.manifest.files.find((file) => file.path === path) as PackFile;
  }

  /** A new file, which is synced before anything appears. */
  #create(path: string): number {
    const fd = openSync(path, 'wx+', 0o644);
    this.undo.push(() => closeSync(fd));
    this.created.push(fd);
    return fd;
  }

  /** Layers and disks. Returns them as an open chain, and what is known of its base. */
  async #extract(small: Map<string, Buffer>, hooks: PackHooks): Promise<{ base: LayerCheck; chain: OpenChain }> {
    const total = totalOf(this.manifest);
    const segments: Segment[] = [];
    let base: LayerCheck | undefined;
    for (const { from, staging } of this.links) {
      const [runs, pages] = ['memory.runs', 'memory.pages'].map((name) => small.get(linkPath(from, name)) as Buffer);
      const moved = firstBytesToRuns(runs as Buffer);
      if (totalBytes(moved) !== this.#entry(linkPath(from, 'memory.first')).size)
        throw new Error('memory.first has another size than its runs');
      const disks = sharedDisks(this.#entry(linkPath(from, 'memory.pages')));
      const places = this.layout.layerPlaces(from, moved, bytesToRuns(pages as Buffer), disks);
      const fd = this.#create(staging.file(MEMORY_FILE));
      // A layer has no zeros, and is written here and there.
      native.fdAllocate(fd, this.#entry(linkPath(from, MEMORY_FILE)).size);
      await this.#writeHead(fd, this.layout.body(linkPath(from, 'memory.first')), moved.slice(0, HEAD_RUNS));
      base ??= this.#openBase(fd);
      // The head is not written again: it is believed from here on.
      for (const [begin, bytes, offset] of places.slice(HEAD_RUNS)) segments.push([begin, bytes, fd, offset]);
      for (const [begin, bytes] of this.layout.elsewhere(from, places)) segments.push([begin, bytes, NOTHING, 0]);
    }
    for (const { path, size, blake3 = '' } of this.disks) {
      const fd = this.#create(this.#disk(blake3));
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
    const placing = this.frames.place(segments, gaps, split, parts, { signal: hooks.signal, onProgress }, base);
    // While others are at work: it needs no more than the heads.
    const [digests, chain] = await settled([placing, this.#open()]);
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
    return this.manifest.files.slice(this.links.length * LINK_FILES.length);
  }

  /** Disks are kept under their hashes until all links have them. */
  #disk(blake3: string): string {
    return this.head.staging.file(`disk-${blake3}`);
  }

  /** Opens the staged chain as a fork would. */
  async #open(): Promise<OpenChain> {
    const chain = this.#openStaged();
    this.undo.push(() => chain.close());
    const manifests = chain.dirs.map((dir) => dir.manifest);
    const tags = manifests.map((m) => m.tag).join(' ');
    if (tags !== this.links.map((link) => link.from).join(' '))
      throw new Error('its chain is another than its manifest says');
    for (const [i, m] of manifests.entries()) {
      if (m.memory_root !== this.manifest.chain[i]?.memory_root) throw new Error(`the root of '${m.tag}' is another`);
      const wrong = harmful(m);
      if (wrong !== undefined) throw invalid(this.request.path, `snapshot.json of '${m.tag}': ${wrong}`);
      chain.dirs[i]?.openState();
    }
    return chain;
  }

  /** Reads every chunk that is not known to be right. */
  async #check(chain: OpenChain, base: KnownChunks): Promise<SnapshotManifest[]> {
    const { problems } = await verifyLayers(chain.layers, base);
    const [problem] = problems;
    if (problem) throw new Error(`memory of '${problem.tag}', chunk ${problem.chunk}: ${problem.reason}`);
    return chain.dirs.map(({ manifest }, i) => this.#settle(this.links[i] as PackedLink, manifest));
  }

  #openStaged(): OpenChain {
    const stagedOf = (tag: string): string => {
      const link = this.links.find(({ from }) => from === tag);
      if (!link) throw new Error(`its chain needs '${tag}', which is not in it`);
      return link.staging.path;
    };
    try {
      return OpenChain.open(stagedOf, this.head.from);
    } catch (error) {
      throw invalid(this.request.path, reasonOf(error), error);
    }
  }

  /** Gives a link its disks, and a manifest that names them here. */
  #settle(link: PackedLink, m: SnapshotManifest): SnapshotManifest {
    const { staging, to } = link;
    const place = (digest: FileDigest, name: string): FileDigest => {
      const { blake3, bytes } = digest;
      const file = this.disks.find((one) => one.blake3 === blake3);
      if (!file || file.size !== bytes) throw new Error(`the ${name} of '${link.from}' is not in it`);
      linkSync(this.#disk(blake3), staging.file(name));
      return { blake3, bytes, path: `${this.store.dir(to)}/${name}`, mtime_ms: statSync(staging.file(name)).mtimeMs };
    };
    const [kernel, initrd, rootfs_digest] = [
      place(m.kernel, 'kernel'),
      place(m.initrd, 'initrd'),
      place(m.rootfs_digest, 'rootfs.ext4'),
    ];
    rmSync(staging.file(MANIFEST_FILE));
    const dir = this.store.dir(to);
    const paths = { vmstate: `${dir}/${STATE_FILE}`, memory: `${dir}/${MEMORY_FILE}`, rootfs: rootfs_digest.path };
    return { ...m, ...paths, tag: to, kernel, initrd, rootfs_digest };
  }

  /** An ancestor that is here with the same memory is as good. */
  #publish({ to, staging }: PackedLink, manifest: SnapshotManifest): boolean {
    const isHead = to === this.head.to;
    if (!isHead && this.store.exists(to)) {
      if (this.store.manifest(to).memory_root === manifest.memory_root) return false;
      throw new ForkdError('SNAPSHOT_EXISTS', { tag: to });
    }
    staging.publish(manifest, isHead && (this.request.force ?? false));
    return true;
  }
}

/** What a manifest could make QEMU do besides running the guest: these texts become part of its options. */
export const harmful = (m: SnapshotManifest): string | undefined => {
  if (m.volumes.length > 0) return 'volumes are files of a host, and a pack brings none';
  if (m.tap !== undefined && !/^[\w.-]{1,15}$/.test(m.tap)) return 'tap is not the name of an interface';
  if (!/^[\w.+=,-]{1,500}$/.test(m.vmm.cpu_model)) return 'cpu_model is not one';
  if (!/^[\w.+=,-]{1,500}$/.test(m.vmm.machine)) return 'machine is not one';
  return undefined;
};

/** As Promise.all, but nothing is at work any more when it throws: files are closed then. */
const settled = async <T extends readonly unknown[] | []>(
  work: T,
): Promise<{ -readonly [K in keyof T]: Awaited<T[K]> }> => {
  await Promise.allSettled(work);
  return Promise.all(work);
};

const sync = promisify(fsync);
