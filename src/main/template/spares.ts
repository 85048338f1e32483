/**
 * Children that are forked before anyone asks. Each has walked a child's first path once, under a name that nobody is told, and
 * is sealed again: it refuses exec and eval until a `fork` request has given it an identity of its own, with its receipt.
 * What a child pays in its first moments (copied pages, page tables, translated code) is paid by then.
 * docs/decisions/0025-spare-children.md has the reasons.
 */
import { randomBytes } from 'node:crypto';
import { rmSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { sandboxId } from '../../contract/names.js';
import type { SnapshotManifest } from '../../contract/snapshot.js';
import type { TaskEvent } from '../../contract/task.js';
import { meminfo } from '../host/resources.js';
import { WorkDir } from '../host/workdir.js';
import type { Pool } from '../pool.js';
import { end } from '../sandbox/end.js';
import { joinGroups } from '../sandbox/join.js';
import { Sandbox } from '../sandbox/sandbox.js';
import { ticksNow } from '../host/process.js';
import { endStrays } from '../sandbox/strays.js';
import type { Lane } from './lane.js';
import { rehearsalIdentity } from './rehearsal.js';
import { MEMORY_FLOOR_BYTES } from './templates.js';

export interface SparesOptions {
  manifest: SnapshotManifest;
  pool: Pool;
  lanes: readonly Lane[];
  /** How many are kept. */
  count: number;
  /** What the template rehearses: a spare walks the same path. */
  firstEval?: string;
  /** As RunContext.tied: one that waits is held by nobody else. */
  tied?: boolean;
  /** Without groups. */
  unlimited?: boolean;
}

export class Spares {
  readonly #idle: Sandbox[] = [];
  /** All that were born here and live, also those that are somebody's by now. */
  readonly #living = new Set<Sandbox>();
  readonly #cancel = new Int32Array(new SharedArrayBuffer(4));
  readonly #workDir: WorkDir;
  #serial = 0;
  #underway = 0;
  #filling: Promise<void> | undefined;
  #closed = false;
  /** Its directory is removed. */
  #gone = false;
  /** Why the last one could not be made. */
  problem: ForkdError | undefined;

  constructor(readonly options: SparesOptions) {
    this.#workDir = WorkDir.create('spare', options.manifest.tag);
  }

  /** Those that wait. */
  get size(): number {
    return this.#idle.length;
  }

  /** Process ids of those that wait. */
  get pids(): number[] {
    return this.#idle.map(({ vmm }) => vmm.pid);
  }

  /** Hands out up to `n`, the oldest first. Whoever takes one makes it a child (`Sandbox.becomes`) or ends it. */
  take(n: number): Sandbox[] {
    return this.#idle.splice(0, n);
  }

  /** Makes as many as are missing, one at a time on each lane, so that a request waits for one at most. Never throws: see `problem`. */
  fill(): Promise<void> {
    this.#filling ??= Promise.all(this.options.lanes.map((lane) => this.#fillFrom(lane)))
      .then(() => undefined)
      .finally(() => {
        this.#filling = undefined;
      });
    return this.#filling;
  }

  async #fillFrom(lane: Lane): Promise<void> {
    while (!this.#closed && this.#missing > 0 && meminfo('MemAvailable') > 2 * MEMORY_FLOOR_BYTES) {
      this.#underway++;
      try {
        await this.#make(lane);
        this.problem = undefined;
      } catch (error) {
        this.problem = ForkdError.from(error);
        return;
      } finally {
        this.#underway--;
      }
    }
  }

  get #missing(): number {
    return this.options.count - this.#idle.length - this.#underway;
  }

  async #make(lane: Lane): Promise<void> {
    const { pool, firstEval, tied = false } = this.options;
    const index = ++this.#serial;
    const since = ticksNow();
    const consolePath = this.#workDir.file(`child-${index}.console`);
    // Named as a sandbox, so that `cleanup` knows how old it is.
    const name = sandboxId(Math.floor(Date.now() / 1000), randomBytes(4).readUInt32LE());
    const child = {
      index,
      name: `spare ${index}`,
      consolePath,
      cgroupProcs: [],
      identity: rehearsalIdentity(),
    };
    const born: Sandbox[] = [];
    const onEvent = (event: TaskEvent) => {
      if (event.type === 'spawned') born.push(this.#adopt(event, lane, consolePath));
      if (event.type === 'ready') born[0]?.ready(event.receipt, event.times);
    };
    const input = {
      children: [child],
      seal: true,
      tied,
      answerMs: limits.firstAnswerSecs * 1000,
      cancel: this.#cancel,
    };
    try {
      const { failures } = await lane.take((port) =>
        pool.run('hotfork', { port, ...input, ...(firstEval === undefined ? {} : { firstEval }) }, onEvent),
      );
      if (failures[0]) throw ForkdError.fromData(failures[0].error);
      if (this.#closed) throw new ForkdError('CANCELLED');
      if (!this.options.unlimited) await joinGroups(pool, born, () => name);
      // One that has died meanwhile is only missing again.
      this.#idle.push(...born.filter(({ state }) => state === 'ready'));
    } catch (error) {
      if (error instanceof ForkdError && error.code === 'WORKER_DIED') await this.#endStrays(since);
      await end(born);
      throw error;
    } finally {
      for (const sandbox of born) sandbox.returned();
    }
  }

  #adopt({ vmm }: Extract<TaskEvent, { type: 'spawned' }>, lane: Lane, consolePath: string): Sandbox {
    const { manifest } = this.options;
    const { tag, isolation } = manifest;
    const { controlFd: _, ...numbers } = lane.port;
    const birth = { id: `spare of ${tag}`, index: vmm.index, tag, hostname: '', isolation, consolePath };
    const sandbox = new Sandbox({ ...birth, snapshot: manifest, numbers }, vmm);
    this.#living.add(sandbox);
    void sandbox.ended.then(() => this.#buried(sandbox));
    return sandbox;
  }

  #buried(sandbox: Sandbox): void {
    this.#living.delete(sandbox);
    const place = this.#idle.indexOf(sandbox);
    if (place >= 0) this.#idle.splice(place, 1);
    rmSync(sandbox.birth.consolePath, { force: true });
    this.#closeWithLast();
  }

  async #endStrays(since: number): Promise<void> {
    await endStrays(this.#workDir.path, new Set([...this.#living].map(({ vmm }) => vmm.pid)), since);
  }

  /** Ends those that wait: memory runs short. Returns how many. */
  async drain(): Promise<number> {
    const idle = this.#idle.splice(0);
    await end(idle);
    return idle.length;
  }

  /** Ends those that wait and makes no more. Those that became somebody's child live on, and the directory with them. */
  async close(): Promise<void> {
    this.#closed = true;
    Atomics.store(this.#cancel, 0, 1);
    await this.#filling;
    await this.drain();
    this.#closeWithLast();
  }

  #closeWithLast(): void {
    if (!this.#closed || this.#filling !== undefined || this.#living.size > 0 || this.#gone) return;
    this.#gone = true;
    this.#workDir.close();
  }
}
