/**
 * Unpacks a pack of version 3. Everything is written into the store's staging directories and checked there; then the links of
 * the chain appear, base first. Names in the pack never become paths: they are compared with those that its manifest must have.
 */
import { createHash, type KeyObject } from 'node:crypto';
import { linkSync, readFileSync, rmSync, statSync } from 'node:fs';
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
import { fileParts } from '../file-parts.js';
import type { Pool } from '../pool.js';
import { OpenChain } from '../store/open-chain.js';
import type { Staging } from '../store/staging.js';
import type { Store } from '../store/store.js';
import { Undo } from '../undo.js';
import { opened } from './age.js';
import { firstBytesToRuns, inOrder, totalOf as totalBytes } from './first.js';
import { readForeign } from './foreign.js';
import {
  invalid,
  LINK_FILES,
  linkPath,
  PACK_MANIFEST,
  type PackFile,
  type PackManifest,
  readPackManifest,
} from './format.js';
import { decompressFrames } from './frames.js';
import type { PackHooks } from './pack.js';
import { bytesToRuns } from './shared-pages.js';
import { checkSignature, PACK_SIGNATURE, SIGNATURE_BYTES } from './signature.js';
import { Sink } from './sink.js';
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
export const unpack = async (
  store: Store,
  request: UnpackRequest,
  pool: Pool,
  hooks: PackHooks = {},
): Promise<Unpacked> => {
  const { path } = request;
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) throw invalid(path, 'there is no such file');
  const input = fileParts(path);
  const undo = new Undo();
  try {
    const content = decompressFrames(await opened(path, input, request.identities ?? []), pool);
    undo.push(async () => void (await content.return(undefined)));
    const tar = new TarReader(content);
    const { manifest, header } = await readHead(request, tar).catch(async (error) => {
      if (!(error instanceof ForkdError)) await readForeign(path);
      throw error;
    });
    requireSize(path, manifest, statSync(path).size);
    return await new Unpacking(store, request, manifest, undo).run(tar, header, pool, hooks);
  } catch (error) {
    if (hooks.signal?.aborted) throw new ForkdError('CANCELLED');
    throw error instanceof ForkdError || isOfTheSystem(error) ? error : invalid(path, reasonOf(error), error);
  } finally {
    await undo.run();
    await input.return(undefined);
  }
};

const isOfTheSystem = (error: unknown): boolean => typeof (error as NodeJS.ErrnoException).syscall === 'string';

/** What is before the first file: the manifest, and its signature if there is one. Also the header of that file. */
export const readHead = async (
  { path, trusted = [] }: Pick<UnpackRequest, 'path' | 'trusted'>,
  tar: TarReader,
): Promise<{ manifest: PackManifest; manifestBytes: number; isSigned: boolean; header: TarHeader | undefined }> => {
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
    if (LISTS.some((list) => name.endsWith(`/${list}`)) && size > limits.packPagesMaxBytes)
      throw invalid(path, `${name} is too large`);
  }
};

/** Gone before the tag appears. */
export const PAGES_FILE = 'memory.pages';
export const RUNS_FILE = 'memory.runs';
export const FIRST_FILE = 'memory.first';
/** Held in memory. */
const LISTS = [PAGES_FILE, BLOCKS_FILE, RUNS_FILE, WORKING_SET_FILE];
/** In the order of LINK_FILES. */
const STAGED_FILES = [
  MANIFEST_FILE,
  STATE_FILE,
  PAGES_FILE,
  BLOCKS_FILE,
  WORKING_SET_FILE,
  RUNS_FILE,
  FIRST_FILE,
  MEMORY_FILE,
];

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

  constructor(
    readonly store: Store,
    readonly request: UnpackRequest,
    readonly manifest: PackManifest,
    readonly undo: Undo,
  ) {
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

  async run(tar: TarReader, header: TarHeader | undefined, pool: Pool, hooks: PackHooks): Promise<Unpacked> {
    await this.#extract(tar, header, hooks);
    await this.#fillPages(pool);
    const manifests = await this.#check(pool);
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

  /** `header` is that of the first file. */
  async #extract(tar: TarReader, header: TarHeader | undefined, hooks: PackHooks): Promise<void> {
    const total = totalOf(this.manifest);
    let done = 0;
    const syncs = new Syncs();
    this.undo.push(() => syncs.settled());
    for (const [i, file] of this.manifest.files.entries()) {
      if (header?.name !== file.path) throw new Error(`entry ${JSON.stringify(header?.name)} is not ${file.path}`);
      if (header.size !== file.size) throw new Error(`${file.path} has another size than its manifest says`);
      const sink = await write(this.#target(i, file), file, tar.body(file.size), (bytes) => {
        hooks.signal?.throwIfAborted();
        done += bytes;
        hooks.onProgress?.(done, total);
      });
      syncs.add(sink);
      header = await tar.next();
    }
    await syncs.done();
    if (header !== undefined) throw new Error('it has entries that its manifest does not list');
  }

  get disks(): PackFile[] {
    return this.manifest.files.slice(this.links.length * LINK_FILES.length);
  }

  /** The files of each link, then disks, which are kept under their hashes until all links have them. */
  #target(i: number, file: PackFile): string {
    const link = this.links[Math.floor(i / LINK_FILES.length)];
    if (link) return link.staging.file(STAGED_FILES[i % LINK_FILES.length] as string);
    return this.#disk(file.sha256 as string);
  }

  #disk(sha256: string): string {
    return this.head.staging.file(`disk-${sha256}`);
  }

  async #fillPages(pool: Pool): Promise<void> {
    const work = this.links.map(async ({ from, staging }) => {
      const pagesPath = staging.file(PAGES_FILE);
      const runs = bytesToRuns(readFileSync(pagesPath));
      const entry = this.manifest.files.find(({ path }) => path === linkPath(from, PAGES_FILE));
      const diskPath = this.#disk(entry?.disk as string);
      const sizeOf = (name: string): number => statSync(staging.file(name)).size;
      const moved = firstBytesToRuns(readFileSync(staging.file(RUNS_FILE)));
      inOrder(moved, sizeOf(MEMORY_FILE));
      if (totalBytes(moved) !== sizeOf(FIRST_FILE)) throw new Error(`${FIRST_FILE} has another size than its runs`);
      const files = { layerPath: staging.file(MEMORY_FILE), diskPath, movedPath: staging.file(FIRST_FILE) };
      await pool.run('fillPages', { runs, moved, ...files });
      for (const name of [PAGES_FILE, BLOCKS_FILE, RUNS_FILE, FIRST_FILE]) rmSync(staging.file(name));
      if (sizeOf(WORKING_SET_FILE) === 0) rmSync(staging.file(WORKING_SET_FILE));
    });
    const [failed] = (await Promise.allSettled(work)).filter((one) => one.status === 'rejected');
    if (failed === undefined) return;
    const { reason } = failed;
    throw (reason as { code?: string }).code === 'INTERNAL' ? new Error(String(reason.details['reason'])) : reason;
  }

  /** Opens the staged chain as a fork would, and reads every chunk. */
  async #check(pool: Pool): Promise<SnapshotManifest[]> {
    const { path } = this.request;
    const chain = this.#openStaged();
    try {
      const manifests = chain.dirs.map((dir) => dir.manifest);
      const tags = manifests.map((m) => m.tag).join(' ');
      if (tags !== this.links.map((link) => link.from).join(' '))
        throw new Error('its chain is another than its manifest says');
      for (const [i, m] of manifests.entries()) {
        if (m.memory_root !== this.manifest.chain[i]?.memory_root) throw new Error(`the root of '${m.tag}' is another`);
        const wrong = harmful(m);
        if (wrong !== undefined) throw invalid(path, `snapshot.json of '${m.tag}': ${wrong}`);
        chain.dirs[i]?.openState();
      }
      const { problems } = await pool.run('verify', { layers: chain.layers });
      const [problem] = problems;
      if (problem) throw new Error(`memory of '${problem.tag}', chunk ${problem.chunk}: ${problem.reason}`);
      return manifests.map((m, i) => this.#settle(this.links[i] as PackedLink, m));
    } finally {
      chain.close();
      for (const { sha256 = '' } of this.disks) rmSync(this.#disk(sha256), { force: true });
    }
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
      const { sha256, bytes } = digest;
      const file = this.disks.find((one) => one.sha256 === sha256);
      if (!file || file.size !== bytes) throw new Error(`the ${name} of '${link.from}' is not in it`);
      linkSync(this.#disk(sha256), staging.file(name));
      return { sha256, bytes, path: `${this.store.dir(to)}/${name}`, mtime_ms: statSync(staging.file(name)).mtimeMs };
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

/** Files that have been written, on their way to the disk while the next are. */
class Syncs {
  readonly #syncs: Promise<void>[] = [];

  add(sink: Sink): void {
    const sync = sink.finish().finally(() => sink.close());
    sync.catch(() => undefined);
    this.#syncs.push(sync);
  }

  /** Throws what syncing one of them throws. */
  async done(): Promise<void> {
    await Promise.all(this.#syncs);
  }

  async settled(): Promise<void> {
    await Promise.allSettled(this.#syncs);
  }
}

/** Zeros become holes. Returns the file, which is not yet on the disk. Throws when the hash is another. */
const write = async (
  path: string,
  file: PackFile,
  body: AsyncIterable<Buffer>,
  onBytes: (bytes: number) => void,
): Promise<Sink> => {
  const hash = file.sha256 === undefined ? undefined : createHash('sha256');
  const sink = new Sink(path);
  try {
    for await (const part of body) {
      const writing = sink.write(part, true);
      // While another thread writes it.
      hash?.update(part);
      await writing;
      onBytes(part.length);
    }
    if (hash && hash.digest('hex') !== file.sha256)
      throw new Error(`${file.path} has another hash than its manifest says`);
    return sink;
  } catch (error) {
    await sink.close();
    throw error;
  }
};
