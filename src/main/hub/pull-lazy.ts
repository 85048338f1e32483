/**
 * Makes a tag of a pack that stays where it is: the beginning of the pack, which has all that is small and what the layers hold, and its seek table
 * are fetched; the files get their sizes, with holes. What is in the holes comes when it is needed (memory/remote.ts).
 */
import { Readable } from 'node:stream';
import { closeSync, ftruncateSync, linkSync, openSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import type { KeyObject } from 'node:crypto';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { DISK_BLOCK_BYTES } from '../../contract/remote-role.js';
import { unzstd } from '../zstd.js';
import { parseTag } from '../../contract/names.js';
import {
  ARRIVED_FILE,
  BLOCKS_FILE,
  type FileDigest,
  MANIFEST_FILE,
  MEMORY_FILE,
  REMOTE_FILE,
  type SnapshotManifest,
  STATE_FILE,
  WORKING_SET_FILE,
} from '../../contract/snapshot.js';
import { bodyOf, type Http, shown, Transient } from '../../http/client.js';
import { native } from '../../native/binding.js';
import { partOf, rangeOf } from '../../workers/remote/fetch.js';
import { arrivedHead, type RemoteRecord } from '../memory/remote.js';
import { OpenChain } from '../store/open-chain.js';
import type { Staging } from '../store/staging.js';
import type { Store } from '../store/store.js';
import { Undo } from '../undo.js';
import { firstBytesToRuns, HEAD_RUNS, inOrder, totalOf as totalBytes } from './first.js';
import { framesOfTable, tableBytesOf } from './frames.js';
import {
  diskPath,
  invalid,
  linkPath,
  type PackFile,
  type PackManifest,
  SMALL_LINK_FILES,
  sharedDisks,
} from './format.js';
import { Layout } from './layout.js';
import { plainVersion } from './plain/version.js';
import type { PullHooks } from './pull.js';
import type { PackSource } from './registry.js';
import { bytesToRuns, sharedPlaces } from './shared-pages.js';
import { decodeHeader, TarReader } from './tar-reader.js';
import { harmful } from './staged-chain.js';
import { readHead, requireSize } from './unpack-frames.js';

/** Of the first request: what most packs have in front of their memory. */
const HEAD_BYTES = 384 * 1024;
const TAIL_BYTES = 64 * 1024;
const HASH_BYTES = 32;
const AGE = 'age-encryption.org/';

export interface LazyPullRequest extends PackSource {
  tag?: string;
  force?: boolean;
  trusted?: KeyObject[];
}

export interface LazilyPulled {
  tag: string;
  dir: string;
  url: string;
  /** Fetched so far, of so many. */
  fetched_bytes: number;
  bytes: number;
  /** Chunks that the pack says are needed first; 0 when nobody had forked the snapshot before it was packed. */
  working_set_chunks: number;
}

/**
 * Throws RANGES_MISSING, REMOTE_CHANGED, PACK_NOT_LAZY, PACK_INVALID, PACK_UNREADABLE, PACK_UNTRUSTED, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, DISK_FULL,
 * HUB_UNREACHABLE, HUB_ANSWERED, CANCELLED; then the store is as it was.
 */
export const pullLazy = async (
  http: Http,
  store: Store,
  request: LazyPullRequest,
  hooks: PullHooks = {},
): Promise<LazilyPulled> => {
  const { url, tag, force = false, trusted = [], sha256 } = request;
  const from = shown(url);
  if (tag !== undefined && store.exists(tag) && !force) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
  if (sha256 !== undefined && trusted.length === 0)
    throw notLazy(from, 'its SHA-256 is known, which only all of it can be held to; a signature (--trust) would do');
  const undo = new Undo();
  try {
    hooks.onStep?.(`looking at ${from}`);
    const remote = await Beginning.open(http, url, request.bytes, hooks);
    const content = remote.contents();
    undo.push(async () => void (await content.return(undefined)));
    return await new Making(store, request, remote, undo).run(new TarReader(content, decodeHeader), trusted);
  } catch (error) {
    if (hooks.signal?.aborted) throw new ForkdError('CANCELLED');
    const isKnown = error instanceof ForkdError || typeof (error as NodeJS.ErrnoException).syscall === 'string';
    throw isKnown ? error : invalid(from, reasonOf(error), error);
  } finally {
    await undo.run();
  }
};

const notLazy = (path: string, reason: string): ForkdError => new ForkdError('PACK_NOT_LAZY', { path, reason });

/** A pack, of which the beginning and the end were fetched. */
class Beginning {
  fetched = 0;

  private constructor(
    readonly http: Http,
    readonly url: URL,
    readonly hooks: PullHooks,
    readonly bytes: number,
    readonly validator: string | undefined,
    private head: Buffer,
    /** Pairs: bytes as they are stored, and unpacked. */
    public frames: number[] = [],
  ) {
    this.fetched = head.length;
  }

  static async open(http: Http, url: URL, said: number | undefined, hooks: PullHooks): Promise<Beginning> {
    const first = await http.retried(
      url,
      async () => {
        const signal = hooks.signal ? { signal: hooks.signal } : {};
        const reply = await http.send(url, { headers: { range: `bytes=0-${HEAD_BYTES - 1}` }, ...signal });
        const { range, etag } = partOf(url, reply, false);
        const parts: Buffer[] = [];
        let missing = Math.min(HEAD_BYTES, range.total);
        for await (const part of bodyOf(reply, http.patience, hooks.signal)) {
          parts.push(part);
          missing -= part.length;
          if (missing < 0) throw new Transient('it sent more than asked for');
        }
        if (range.from !== 0 || missing > 0) throw new Transient('it broke off');
        return { range, etag, head: Buffer.concat(parts) };
      },
      hooks,
    );
    const { total } = first.range;
    if (said !== undefined && total !== said) throw invalid(shown(url), `it has ${total} bytes, not ${said}`);
    if (total > limits.transferMaxBytes) throw invalid(shown(url), `it has ${total} bytes, which is too much`);
    const { head } = first;
    if (head.toString('latin1', 0, AGE.length) === AGE) throw notLazy(shown(url), 'it is encrypted');
    const version = await plainVersion(unzstd(Readable.from([head])));
    if (version !== undefined)
      throw notLazy(shown(url), `it is of version ${version}, which is read from front to back`);
    const beginning = new Beginning(http, url, hooks, total, first.etag, head);
    await beginning.#readTable();
    return beginning;
  }

  async #readTable(): Promise<void> {
    const { bytes } = this;
    let tail = await this.#range(Math.max(0, bytes - TAIL_BYTES), bytes);
    const tableBytes = tableBytesOf(tail, bytes);
    if (tableBytes > tail.length) tail = await this.#range(bytes - tableBytes, bytes);
    this.frames = framesOfTable(tail.subarray(tail.length - tableBytes), bytes);
  }

  async #range(from: number, to: number): Promise<Buffer> {
    if (to <= this.head.length) return this.head.subarray(from, to);
    const pack = { bytes: this.bytes, ...(this.validator === undefined ? {} : { validator: this.validator }) };
    return this.http.retried(
      this.url,
      async () => {
        const parts: Buffer[] = [];
        for await (const part of rangeOf(this.http, this.url, pack, from, to, this.hooks.signal)) parts.push(part);
        const all = Buffer.concat(parts);
        this.fetched += all.length;
        return all;
      },
      this.hooks,
    );
  }

  /** Frame by frame, as far as they are asked for. */
  async *contents(): AsyncGenerator<Buffer> {
    const { decompress } = await import('zstd-napi');
    let at = 0;
    for (let i = 0; i < this.frames.length; i += 2) {
      const stored = this.frames[i] as number;
      const content = decompress(await this.#range(at, at + stored));
      if (content.length !== this.frames[i + 1]) throw new Error('a frame is of another size than its seek table says');
      yield content;
      at += stored;
    }
  }
}

class Making {
  constructor(
    readonly store: Store,
    readonly request: LazyPullRequest,
    readonly remote: Beginning,
    readonly undo: Undo,
  ) {}

  get from(): string {
    return shown(this.request.url);
  }

  async run(tar: TarReader, trusted: KeyObject[]): Promise<LazilyPulled> {
    const { store, request, remote, from } = this;
    const { manifest, manifestBytes, isSigned, header } = await readHead({ path: from, trusted }, tar);
    requireSize(from, manifest, remote.bytes);
    if (manifest.chain.length !== 1)
      throw notLazy(from, `its chain has ${manifest.chain.length} links, and only one without ancestors can`);
    if (manifest.files.some(({ path, size }) => path === linkPath(manifest.tag, BLOCKS_FILE) && size === 0))
      throw notLazy(from, 'its root disk is larger than what can be checked in parts');
    const to = request.tag === undefined ? manifest.tag : parseTag(request.tag);
    if (store.exists(to) && !request.force) throw new ForkdError('SNAPSHOT_EXISTS', { tag: to });
    store.requireSpace(manifest.files.reduce((sum, { size }) => sum + size, 0));
    const small = await this.#readSmall(tar, header?.name, manifest);
    const lock = store.lock(to);
    this.undo.push(() => lock.release());
    const staging = store.stage(to);
    this.undo.push(() => staging.discard());
    const placed = new Placed(staging, manifest, small);
    placed.write();
    const m = this.#check(staging, manifest);
    const pack = { url: request.url.href, bytes: remote.bytes, frames: remote.frames };
    const validator = remote.validator === undefined ? {} : { validator: remote.validator };
    const places = placed.placeDisks(m);
    const layout = new Layout(manifest, manifestBytes, isSigned);
    const { segments, headEnd } = segmentsOf(manifest, layout, placed, places.files);
    const record: RemoteRecord = { ...pack, ...validator, segments, ...places };
    writeFileSync(staging.file(REMOTE_FILE), JSON.stringify(record), { mode: 0o600 });
    writeFileSync(staging.file(ARRIVED_FILE), Buffer.concat([arrivedHead(), arrivedAlready(remote.frames, headEnd)]));
    const settled = settle(store.dir(to), m, to);
    rmSync(staging.file(MANIFEST_FILE));
    syncAll(staging, [STATE_FILE, MEMORY_FILE, REMOTE_FILE, ARRIVED_FILE, BLOCKS_FILE, ...DISK_FILES]);
    staging.publish(settled, request.force ?? false);
    const working_set_chunks = small['working-set'].length / 4;
    return {
      tag: to,
      dir: store.dir(to),
      url: from,
      fetched_bytes: remote.fetched,
      bytes: remote.bytes,
      working_set_chunks,
    };
  }

  /** What is in front of the memory, and the beginning of that. */
  async #readSmall(tar: TarReader, firstName: string | undefined, manifest: PackManifest): Promise<Small> {
    const found: Record<string, Buffer> = {};
    let name = firstName;
    for (const file of SMALL_LINK_FILES) {
      const entry = manifest.files.find(({ path }) => path === linkPath(manifest.tag, file)) as PackFile;
      if (name !== entry.path) throw new Error(`entry ${JSON.stringify(name)} is not ${entry.path}`);
      const parts: Buffer[] = [];
      let wanted = file === 'memory.first' ? headBytes(found['memory.runs'] as Buffer) : entry.size;
      if (wanted > entry.size || wanted > limits.packStateMaxBytes) throw new Error(`${entry.path} is of a wrong size`);
      const isWhole = wanted === entry.size;
      for await (const part of tar.body(entry.size)) {
        parts.push(Buffer.from(part.subarray(0, wanted)));
        wanted -= Math.min(part.length, wanted);
        if (wanted === 0 && !isWhole) break;
      }
      const content = Buffer.concat(parts);
      if (entry.blake3 !== undefined && native.blake3(content) !== entry.blake3)
        throw new Error(`${entry.path} has another hash than its manifest says`);
      found[file] = content;
      if (file !== 'memory.first') name = (await tar.next())?.name;
    }
    return found as Small;
  }

  /** Opens the staged tag as a fork would: header and index of its layer are held to the root. */
  #check(staging: Staging, manifest: PackManifest): SnapshotManifest {
    let chain: OpenChain;
    try {
      chain = OpenChain.open(() => staging.path, manifest.tag);
    } catch (error) {
      throw invalid(this.from, reasonOf(error), error);
    }
    try {
      const { manifest: m } = chain;
      if (m.memory_root !== manifest.chain[0]?.memory_root) throw new Error('the root of its memory is another');
      if (m.parent_tag !== undefined) throw new Error('its memory is a difference');
      const wrong = harmful(m);
      if (wrong !== undefined) throw new Error(`snapshot.json: ${wrong}`);
      return m;
    } finally {
      chain.close();
    }
  }
}

type Small = Record<(typeof SMALL_LINK_FILES)[number], Buffer>;

const DISK_FILES = ['rootfs.ext4', 'kernel', 'initrd'] as const;

const headBytes = (runs: Buffer): number => totalBytes(firstBytesToRuns(runs).slice(0, HEAD_RUNS));

/** The files of a staged tag. */
class Placed {
  readonly runs: [number, number][];
  readonly shared: Uint32Array;
  readonly layer: PackFile;
  readonly disks: PackFile[];
  readonly pages: PackFile;

  constructor(
    readonly staging: Staging,
    manifest: PackManifest,
    readonly small: Small,
  ) {
    const own = (name: string) => manifest.files.find(({ path }) => path === linkPath(manifest.tag, name)) as PackFile;
    this.layer = own(MEMORY_FILE);
    this.pages = own('memory.pages');
    this.disks = manifest.files.filter(({ path }) => path.startsWith('disks/'));
    this.runs = firstBytesToRuns(small['memory.runs']);
    inOrder(this.runs, this.layer.size);
    if (totalBytes(this.runs) !== own('memory.first').size)
      throw new Error('memory.first has another size than its runs');
    this.shared = bytesToRuns(small['memory.pages']);
    // Before anything is written.
    const sizes = sharedDisks(this.pages).map((path) => this.disks.find((disk) => disk.path === path)?.size ?? 0);
    sharedPlaces(this.shared, this.layer.size, sizes);
    const blocks = Math.ceil(this.root.size / DISK_BLOCK_BYTES);
    if (small['disk.blocks'].length !== blocks * HASH_BYTES)
      throw new Error('disk.blocks has another size than its disk');
  }

  /** The root disk. */
  get root(): PackFile {
    return this.disks.find(({ blake3 }) => blake3 === this.pages.disk) as PackFile;
  }

  write(): void {
    const { staging, small } = this;
    writeFileSync(staging.file(MANIFEST_FILE), small['snapshot.json']);
    writeFileSync(staging.file(STATE_FILE), small['vmstate']);
    writeFileSync(staging.file(BLOCKS_FILE), small['disk.blocks']);
    if (small['working-set'].length > 0) writeFileSync(staging.file(WORKING_SET_FILE), small['working-set']);
    const fd = openSync(staging.file(MEMORY_FILE), 'wx');
    try {
      ftruncateSync(fd, this.layer.size);
      let at = 0;
      for (const [offset, bytes] of this.runs.slice(0, HEAD_RUNS)) {
        writeSync(fd, small['memory.first'], at, bytes, offset);
        at += bytes;
      }
    } finally {
      closeSync(fd);
    }
  }

  /** Holes of the size of each disk. */
  placeDisks(m: SnapshotManifest): Pick<RemoteRecord, 'files' | 'disk'> {
    const files: RemoteRecord['files'] = [{ name: MEMORY_FILE, bytes: this.layer.size }];
    const digests = [m.rootfs_digest, m.kernel, m.initrd];
    if (m.rootfs_digest.blake3 !== this.pages.disk) throw new Error('its root disk is another than its manifest says');
    for (const [i, name] of DISK_FILES.entries()) {
      const { blake3, bytes } = digests[i] as FileDigest;
      const known = files.find((file) => file.blake3 === blake3);
      const packed = this.disks.find((disk) => disk.blake3 === blake3);
      if (packed?.size !== bytes) throw new Error(`${name} is not in it`);
      if (known) {
        linkSync(this.staging.file(known.name), this.staging.file(name));
        continue;
      }
      const fd = openSync(this.staging.file(name), 'wx');
      ftruncateSync(fd, bytes);
      closeSync(fd);
      files.push({ name, bytes, blake3 });
    }
    return { files, disk: 1 };
  }
}

/** Which bytes of the unpacked pack are which of the files'; and where what was written already ends. */
const segmentsOf = (
  manifest: PackManifest,
  layout: Layout,
  { runs, shared, pages }: Placed,
  files: RemoteRecord['files'],
): { segments: number[]; headEnd: number } => {
  const { tag } = manifest;
  const segments = layout
    .layerPlaces(tag, runs, shared, sharedDisks(pages))
    .map(([begin, bytes, offset]) => [begin, bytes, 0, offset] as [number, number, number, number]);
  const headEnd = layout.body(linkPath(tag, 'memory.first')) + totalBytes(runs.slice(0, HEAD_RUNS));
  for (const [i, { blake3, bytes }] of files.entries())
    if (blake3 !== undefined) segments.push([layout.body(diskPath(blake3)), bytes, i, 0]);
  return { segments: segments.sort((a, b) => a[0] - b[0]).flat(), headEnd };
};

/** The frames that end before it. */
const arrivedAlready = (frames: number[], headEnd: number): Buffer => {
  const arrived = Buffer.alloc(frames.length / 2);
  let at = 0;
  for (let i = 0; i < arrived.length; i++) {
    at += frames[2 * i + 1] as number;
    if (at <= headEnd) arrived[i] = 1;
  }
  return arrived;
};

/** As unpacking does: files of this tag, of a time that they will get when all of them is there. */
const settle = (dir: string, m: SnapshotManifest, tag: string): SnapshotManifest => {
  const mtime_ms = Math.floor(Date.now() / 1000) * 1000;
  const own = ({ blake3, bytes }: FileDigest, name: string): FileDigest => ({
    path: `${dir}/${name}`,
    blake3,
    bytes,
    mtime_ms,
  });
  const rootfs_digest = own(m.rootfs_digest, 'rootfs.ext4');
  const paths = { vmstate: `${dir}/${STATE_FILE}`, memory: `${dir}/${MEMORY_FILE}`, rootfs: rootfs_digest.path };
  return { ...m, ...paths, tag, kernel: own(m.kernel, 'kernel'), initrd: own(m.initrd, 'initrd'), rootfs_digest };
};

const syncAll = (staging: Staging, names: readonly string[]): void => {
  for (const name of names) {
    if (!statSync(staging.file(name), { throwIfNoEntry: false })) continue;
    const fd = openSync(staging.file(name), 'r');
    native.fdSync(fd);
    closeSync(fd);
  }
};
