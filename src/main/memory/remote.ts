/**
 * A snapshot whose pack is still on another machine (`pull --lazy`), while it is used: its files are in the store, with holes where nothing has
 * come yet. A fetcher in a worker fills them; the fault server and the shim wait for what it brings (docs/internals/remote.md).
 */
import { closeSync, fstatSync, openSync, readFileSync, readSync, rmSync, utimesSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { MessageChannel } from 'node:worker_threads';
import { type Remote, wrap } from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { ForkdError } from '../../contract/errors.js';
import type { Patience } from '../../contract/patience.js';
import { ARRIVED_FILE, BLOCKS_FILE, REMOTE_FILE } from '../../contract/snapshot.js';
import type { Who } from '../../contract/task.js';
import { DISK_BLOCK_BYTES, type RemoteFetcher, type RemotePack, type RemoteStats } from '../../contract/remote-role.js';
import { native } from '../../native/binding.js';
import { fileDigest } from '../file-digest.js';
import { framesOf } from '../hub/first.js';
import type { Pool } from '../pool.js';
import type { OpenChain } from '../store/open-chain.js';
import { syncDir } from '../store/staging.js';
import type { MemorySource } from './source.js';
import { verifyLayers } from './verify.js';

/** `remote.json`. */
export interface RemoteRecord extends RemotePack {
  /** In the tag's directory, in the order of `files` in the job; the first is the layer. */
  files: { name: string; bytes: number; blake3?: string }[];
  /** Which of them is the root disk. */
  disk: number;
}

const PROBLEM_BYTES = 1024;
const ARRIVED_HEAD_BYTES = 37;

/** Changes when the host starts anew: what was written before may not have reached the disk. */
const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').slice(0, 36);

export const arrivedHead = (): Buffer => Buffer.from(`${bootId()}\n`);

/** Those whose disk a process may be waiting for, or may have been ended by. */
const fetching = new Set<RemoteSnapshot>();
/** By who a process says it is. */
const losses = new Map<string, string>();
const keyOf = ({ pid, line }: { pid: number; line: number }): string => `${line}:${pid}`;

/** Why a process ended itself because of its disk, told once. */
export const takeDiskLoss = ({ pid, inside }: Who): string | undefined => {
  for (const remote of fetching) remote.hearVictims();
  const key = keyOf(inside ?? { pid, line: 0 });
  const reason = losses.get(key);
  losses.delete(key);
  return reason;
};

export class RemoteSnapshot {
  readonly #problem = Buffer.from(new SharedArrayBuffer(PROBLEM_BYTES));
  readonly #fetcher: Remote<RemoteFetcher>;
  readonly #ended: Promise<unknown>;
  readonly #port: { close: () => void };
  #finished: Promise<void> | undefined;
  #isWhole = false;
  #isClosed = false;

  private constructor(
    readonly chain: OpenChain,
    readonly record: RemoteRecord,
    pool: Pool,
    readonly arrivals: { handle: number; statesFd: number; asksFd: number },
    readonly fds: number[],
    job: Omit<Parameters<RemoteFetcher['start']>[0], 'problem'>,
  ) {
    const { port1, port2 } = new MessageChannel();
    this.#ended = pool.serve('remote', port2).catch(() => undefined);
    this.#port = port1;
    this.#fetcher = wrap<RemoteFetcher>(nodeEndpoint(port1));
    void this.#fetcher.start({ ...job, problem: this.#problem });
    fetching.add(this);
  }

  /** Begins to fetch. `diskFd`: the root disk as VMMs will open it. */
  static open(
    chain: OpenChain,
    source: MemorySource,
    diskFd: number,
    pool: Pool,
    workingSet: Uint32Array,
    patience?: Partial<Patience>,
  ): RemoteSnapshot {
    const { folder, layers } = chain;
    const record = JSON.parse(readFileSync(join(folder, REMOTE_FILE), 'utf8')) as RemoteRecord;
    const fds: number[] = [];
    const open = (name: string): number => {
      const fd = openSync(join(folder, name), 'r+');
      fds.push(fd);
      return fd;
    };
    const files = record.files.map(({ name }) => open(name));
    const arrived = openArrived(open(ARRIVED_FILE), record.frames.length / 2);
    const disk = record.files[record.disk] as RemoteRecord['files'][number];
    const { chunks } = source.info;
    const blocks = Math.ceil(disk.bytes / DISK_BLOCK_BYTES);
    const arrivals = native.arrivalsOpen(chunks + blocks, chunks, diskFd);
    return new RemoteSnapshot(chain, record, pool, arrivals, fds, {
      ...record,
      files,
      record: arrived,
      recordOffset: ARRIVED_HEAD_BYTES,
      chunks: framesOf(layers[0]?.fd as number).flatMap(({ chunk, offset, bytes }) => [chunk, offset, bytes]),
      source: source.handle,
      arrivals: arrivals.handle,
      firstBlock: chunks,
      disk: { file: record.disk, bytes: disk.bytes, blocks: readFileSync(join(folder, BLOCKS_FILE)) },
      workingSet,
      ...(patience ? { patience } : {}),
    });
  }

  /** Why something did not come; empty when nothing is known to be missing. */
  get problem(): string {
    const text = Buffer.from(this.#problem).toString('utf8');
    return text.slice(0, text.indexOf('\0'));
  }

  hearVictims(): void {
    for (const victim of native.arrivalsVictims(this.arrivals.handle))
      losses.set(keyOf(victim), `its disk: ${this.problem}`);
  }

  stats(): Promise<RemoteStats> {
    return this.#fetcher.stats();
  }

  /** What was given up is asked for again. */
  async retry(): Promise<void> {
    if (this.problem === '' || this.#isWhole) return;
    this.#problem.fill(0);
    await this.#fetcher.retry();
  }

  /** Brings all of it, checks it, and makes the tag one like any other. Throws what the fetcher says, PACK_INVALID. */
  finish(): Promise<void> {
    this.#finished ??= this.#finish().catch((error) => {
      this.#finished = undefined;
      throw error;
    });
    return this.#finished;
  }

  async #finish(): Promise<void> {
    const outcome = await this.#fetcher.fetchAll();
    if (!outcome.ok) throw ForkdError.fromData(outcome.error);
    const { folder } = this.chain;
    const path = (name: string): string => join(folder, name);
    const wrong = (reason: string) => {
      const { origin, pathname } = new URL(this.record.url);
      return new ForkdError('PACK_INVALID', { path: `${origin}${pathname}`, reason });
    };
    const hashed = this.record.files.filter(({ blake3 }) => blake3 !== undefined);
    for (const { name, blake3 } of hashed)
      if ((await fileDigest(path(name))).blake3 !== blake3)
        throw wrong(`${name} has another hash than its manifest says`);
    const { problems } = await verifyLayers(this.chain.layers);
    if (problems[0]) throw wrong(`chunk ${problems[0].chunk} of its memory: ${problems[0].reason}`);
    for (const fd of new Set(this.fds)) native.fdSync(fd);
    // As snapshot.json says: a disk with that size and time need not be hashed again.
    const { kernel, initrd, rootfs_digest } = this.chain.manifest;
    for (const { path: named, mtime_ms } of [kernel, initrd, rootfs_digest]) {
      const own = path(named.slice(named.lastIndexOf('/') + 1));
      utimesSync(own, mtime_ms / 1000, mtime_ms / 1000);
    }
    native.arrivalsWhole(this.arrivals.handle);
    this.#isWhole = true;
    // From here on it is whole for everybody.
    rmSync(path(REMOTE_FILE), { force: true });
    syncDir(folder);
    for (const name of [ARRIVED_FILE, BLOCKS_FILE]) rmSync(path(name), { force: true });
  }

  /** Nobody will start anything from it through this object. What runs finds all of it: it is fetched to its end. */
  async leave(): Promise<void> {
    await this.finish().then(
      () => this.close(),
      () => undefined,
    );
  }

  /** Ends the fetcher. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    fetching.delete(this);
    await Promise.race([this.#fetcher.stop(), this.#ended]);
    await this.#ended;
    this.#port.close();
    for (const fd of this.fds) closeSync(fd);
  }
}

/** What came before the host started anew counts as not come. */
const openArrived = (fd: number, frames: number): number => {
  const head = Buffer.alloc(ARRIVED_HEAD_BYTES);
  readSync(fd, head, 0, head.length, 0);
  const isSound = head.equals(arrivedHead()) && fstatSync(fd).size === ARRIVED_HEAD_BYTES + frames;
  if (!isSound) writeSync(fd, Buffer.concat([arrivedHead(), Buffer.alloc(frames)]), 0, undefined, 0);
  return fd;
};
