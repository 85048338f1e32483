/**
 * A memory image whose chunks are loaded when somebody touches them. VMMs hand their memory to a fault server (native
 * threads, docs/internals/faults.md), which reads, verifies and fills each chunk once for everybody. What nobody has touched
 * is filled in the host's idle time; with the last chunk the server ends, and the image is like one that was loaded whole.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { faultCounts, type FaultCounts, FaultTimes, makeFaultStats } from '../../contract/fault-stats.js';
import { damageOf } from '../../contract/layer-damage.js';
import { FILLING, PageMap, PRESENT } from '../../contract/page-map.js';
import type { Who } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { type GuestMemory, MemoryImage } from './image.js';
import { type RemoteSnapshot, takeDiskLoss } from './remote.js';
import type { MemorySource } from './source.js';

/**
 * How long a fault waits for a chunk that another thread is filling before its own fills it too: a chunk takes about 0.1 ms,
 * and one that fills in idle time may not run again for long.
 */
const PATIENCE_US = 2000;
/** A chunk that nobody has finished in this time was claimed by a thread that has ended. */
const STUCK_MS = 100;
/** Passes over what is missing. After the first only chunks are left that somebody else had claimed. */
const PASSES = 4;
/** Between two looks whether the processes that need a closed image have ended. */
const SWEEP_MS = 500;

/** What the shim asks of userfaultfd(2), hotfork/ram.c. */
const FEATURES = ['event_fork', 'event_remap', 'event_remove', 'event_unmap', 'missing_shmem', 'thread_id'];

/** Why this host cannot load memory lazily, or undefined. Asked once. */
export const lazyProblem = (): string | undefined => {
  problem ??= { reason: findProblem() };
  return problem.reason;
};
let problem: { reason: string | undefined } | undefined;

const findProblem = (): string | undefined => {
  try {
    const features = native.uffdFeatures();
    const missing = FEATURES.filter((name) => !features.includes(name));
    return missing.length === 0 ? undefined : `userfaultfd lacks ${missing.join(', ')}`;
  } catch (error) {
    return `userfaultfd: ${reasonOf(error)}`;
  }
};

/** Those that a process may be waiting for, or may have been ended by. */
const serving = new Set<LazyImage>();
/** Processes that were ended because of their memory, and why, until somebody asks. */
const losses = new Map<number, string>();

/** Why a process was ended by a fault server, told once; undefined when it was not. */
export const takeLoss = (who: Who): string | undefined => {
  const { pid } = who;
  for (const image of serving) image.hearFailures();
  const reason = losses.get(pid) ?? takeDiskLoss(who);
  losses.delete(pid);
  return reason;
};

/** Times that are kept for `takeFaultTimes`, of each image and of all that have ended: more than a guest of 1 GiB has chunks. */
const TIMES_MAX = 16_384;
/** Of images that are whole by now. */
let endedTimes: number[] = [];

/** How long faults waited for their memory, nanoseconds; each is told once. */
export const takeFaultTimes = (): number[] => {
  const times = endedTimes;
  endedTimes = [];
  for (const image of serving) times.push(...image.takeTimes());
  return times;
};

/** The chunks to load first, or what to do with those that were touched first. */
export interface WorkingSet {
  known?: Uint32Array;
  record: (chunks: Uint32Array) => void;
}

export class LazyImage implements GuestMemory {
  readonly #stats = makeFaultStats(TIMES_MAX);
  readonly #times = new FaultTimes(this.#stats);
  /** Their count, then the chunks in the order in which they were first touched. */
  readonly #order: Uint32Array;
  readonly #threads: Promise<void>[];
  /** What runs in native threads to fill chunks ahead. */
  readonly #fills = new Set<Promise<unknown>>();
  readonly #failed = new Map<number, Error>();
  #populating: Promise<void> | undefined;
  #released: Promise<void> | undefined;
  #isClosed = false;
  #isRecorded = false;

  private constructor(
    readonly source: MemorySource,
    readonly memfd: number,
    readonly memory: number,
    readonly handle: number,
    readonly pages: PageMap,
    readonly width: number,
    /** Until it is recorded. */
    private workingSet: WorkingSet,
    /** Brings its files, as long as they are not all here. */
    readonly remote: RemoteSnapshot | undefined,
  ) {
    const { states } = pages;
    this.#order = new Uint32Array(new SharedArrayBuffer((1 + states.length) * Uint32Array.BYTES_PER_ELEMENT));
    this.#threads = Array.from({ length: width }, () =>
      native.faultServeAside(handle, states, this.#stats, this.#order),
    );
    serving.add(this);
    if (workingSet.known) this.#prefetch(workingSet.known);
  }

  /** Nothing is loaded yet; what is known to be needed is from now on, as fast as can be. `width` threads serve. Throws what memfd_create(2), mmap(2) and userfaultfd(2) fail with. */
  static open(
    name: string,
    source: MemorySource,
    width: number,
    workingSet: WorkingSet,
    remote?: RemoteSnapshot,
  ): LazyImage {
    const { imageBytes } = source.info;
    const memfd = MemoryImage.blank(name, imageBytes);
    let memory: number | undefined;
    try {
      // Mapped before the seal, which keeps everybody else from writing.
      memory = native.memoryOpen(memfd);
      native.memfdSeal(memfd, ['grow', 'shrink', 'future_write', 'seal']);
      const arrivals = remote ? { arrivals: remote.arrivals.handle } : {};
      const handle = native.faultOpen({ source: source.handle, memory, patienceUs: PATIENCE_US, ...arrivals });
      return new LazyImage(source, memfd, memory, handle, PageMap.create(imageBytes), width, workingSet, remote);
    } catch (error) {
      if (memory !== undefined) native.memoryClose(memory);
      native.fdClose(memfd);
      throw error;
    }
  }

  get bytes(): number {
    return this.source.info.imageBytes;
  }

  get server(): number | undefined {
    return this.#isReleased ? undefined : this.handle;
  }

  /** The server ends, or has ended. */
  get #isReleased(): boolean {
    return this.#released !== undefined;
  }

  get counts(): FaultCounts {
    return faultCounts(this.#stats);
  }

  /** In their order, by all threads at once: each takes every so-manieth. Who needs one sooner, fills it. */
  #prefetch(chunks: Uint32Array): void {
    for (let first = 0; first < this.width; first++) {
      const part = chunks.filter((_, i) => i % this.width === first);
      this.#fillPart(part, false).catch(() => undefined);
    }
  }

  get isForeseen(): boolean {
    return this.workingSet.known !== undefined;
  }

  /** What was touched until now, by a template and its first children, is what is needed first. */
  #record(): void {
    if (this.#isRecorded || this.#isClosed) return;
    this.#isRecorded = true;
    const { known = new Uint32Array(), record } = this.workingSet;
    const touched = this.#order.slice(1, 1 + Atomics.load(this.#order, 0));
    const seen = new Set(known);
    // Each run touches a little that the one before did not.
    const more = touched.filter((chunk) => !seen.has(chunk));
    const all = Uint32Array.from([...known, ...more]);
    if (more.length > 0) record(all);
    this.workingSet = { known: all, record };
  }

  populate(): void {
    if (this.#isReleased) return;
    this.#record();
    this.remote?.finish().catch(() => undefined);
    this.#populating ??= this.#fill(true).finally(() => {
      this.#populating = undefined;
    });
    // What cannot be loaded is kept for `check`, and for whoever touches it.
    this.#populating.catch(() => undefined);
  }

  async complete(): Promise<void> {
    await this.remote?.finish();
    if (this.#isReleased) return;
    await awake(this.#fill(false));
    const [chunk, error] = [...this.#failed][0] ?? [];
    if (chunk !== undefined) throw this.#damage(chunk, error);
    const { present } = this.pages.counts();
    const missing = this.pages.states.length - present;
    if (missing > 0) throw new ForkdError('INTERNAL', { reason: `${missing} chunks of the memory image are missing` });
  }

  async beforeFork(): Promise<void> {
    await this.remote?.retry();
    // What failed may have been a moment's trouble of the disk.
    if (this.#failed.size > 0) await this.complete();
    // What the first children touch tells nothing new. But a link that brings the rest is not free for what they wait for.
    if (this.isForeseen && !this.remote) this.populate();
  }

  close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    void this.#end();
  }

  /** Children outlive the template that they were forked from, and may touch what is not there yet. */
  async #end(): Promise<void> {
    while (!this.#isReleased && native.faultSweep(this.handle) > 0) {
      if (this.#failed.size === 0) this.populate();
      await Promise.race(
        [this.#populating?.catch(() => undefined), sleep(SWEEP_MS, undefined, { ref: false })].filter(
          (p) => p !== undefined,
        ),
      );
    }
    await this.#release();
    native.fdClose(this.memfd);
  }

  /** Fills what is absent. Chunks that fail are in #failed; when none is left, the server goes. */
  async #fill(idle: boolean): Promise<void> {
    this.#failed.clear();
    for (let pass = 0; pass < PASSES; pass++) {
      const missing = this.#missing();
      if (missing.length === 0) break;
      if (pass > 0) await this.#freeStuck(missing);
      if (this.#isReleased) return;
      await Promise.all(split(missing, this.width).map((part) => this.#fillPart(part, idle)));
    }
    if (this.#missing().length === 0 && this.#failed.size === 0) await this.#release();
  }

  async #fillPart(chunks: Uint32Array, idle: boolean): Promise<void> {
    const fill = native.faultFillAside(this.handle, this.pages.states, this.#stats, chunks, idle);
    this.#fills.add(fill);
    try {
      const { failed } = await fill;
      for (const { chunk, error } of failed) this.#failed.set(chunk, error);
    } finally {
      this.#fills.delete(fill);
    }
  }

  #missing(): Uint32Array {
    const { states } = this.pages;
    const missing: number[] = [];
    for (let chunk = 0; chunk < states.length; chunk++) {
      if (Atomics.load(states, chunk) !== PRESENT && !this.#failed.has(chunk)) missing.push(chunk);
    }
    return Uint32Array.from(missing);
  }

  /** Two that fill one chunk write the same: nothing goes wrong when the first was only slow. */
  async #freeStuck(missing: Uint32Array): Promise<void> {
    await sleep(STUCK_MS);
    for (const chunk of missing) {
      if (Atomics.load(this.pages.states, chunk) === FILLING) this.pages.settle(chunk, false);
    }
  }

  /** Ends the server: all chunks are there, or nobody is. */
  #release(): Promise<void> {
    this.#released ??= this.#stop();
    return this.#released;
  }

  async #stop(): Promise<void> {
    native.faultStop(this.handle);
    await Promise.all([...this.#threads, ...this.#fills]);
    this.hearFailures();
    endedTimes = [...endedTimes, ...this.takeTimes()].slice(-TIMES_MAX);
    serving.delete(this);
    native.faultClose(this.handle, this.pages.states);
    native.memoryClose(this.memory);
  }

  takeTimes(): number[] {
    return this.#times.takeNs();
  }

  hearFailures(): void {
    for (const { pid, chunk, reason } of native.faultFailures(this.handle)) {
      const where = chunk === null ? '' : `chunk ${chunk}: `;
      const why = this.remote?.problem ? `${reason}: ${this.remote.problem}` : reason;
      if (pid !== null) losses.set(pid, `${this.#head}: ${where}${why}`);
    }
  }

  get #head(): string {
    return this.source.layers.at(-1)?.path ?? 'its memory';
  }

  #damage(chunk: number, error: unknown): unknown {
    const damage = damageOf(error, this.source.layers);
    if (!(damage instanceof ForkdError)) return damage;
    return new ForkdError(
      'SNAPSHOT_CORRUPT',
      { ...damage.details, reason: `chunk ${chunk}: ${damage.details['reason']}` },
      error,
    );
  }
}

/** Native threads alone do not keep this process alive. */
const awake = async <T>(work: Promise<T>): Promise<T> => {
  const hold = setInterval(() => undefined, 60_000);
  try {
    return await work;
  } finally {
    clearInterval(hold);
  }
};

/** Neighbours stay together: a disk is read in order. */
const split = (chunks: Uint32Array, parts: number): Uint32Array[] => {
  const size = Math.ceil(chunks.length / parts);
  return Array.from({ length: parts }, (_, i) => chunks.slice(i * size, (i + 1) * size)).filter((c) => c.length > 0);
};
