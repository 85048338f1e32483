/** What the daemon knows of its sandboxes: also of those that ended, until they are deleted. */
import { limitsBody } from '../../contract/resources.js';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import type { Labels, SandboxBody } from '../../contract/rest.js';
import { HELD_AGE_MS, type Sandbox } from '../sandbox/sandbox.js';
import type { Events } from './events.js';

export interface Wishes {
  labels?: Labels;
  /** Seconds from birth, and without a call, after which it is ended. */
  ttlSecs?: number | null;
  idleSecs?: number | null;
}

export interface Entry {
  readonly sandbox: Sandbox;
  readonly labels: Labels;
  readonly idleSecs: number | null;
  readonly expiresAt: number | null;
  branches: number;
  lastBranchMemory: string | null;
  /** Milliseconds since the epoch. */
  lastActive: number;
  /** Calls under way: a sandbox that works is not idle. */
  calls: number;
  /** Why the daemon ended it; it is dead or about to be. */
  endedFor?: string;
  /** Why it takes no calls at the moment. */
  heldFor?: string;
}

export class Registry {
  readonly #entries = new Map<string, Entry>();
  #timer: NodeJS.Timeout | undefined;
  #fires = Number.POSITIVE_INFINITY;

  constructor(
    readonly events: Events,
    readonly kill: (sandbox: Sandbox) => void,
  ) {}

  add(entry: Entry): void {
    this.events.sandbox('created', bodyOf(entry));
    this.restore(entry);
  }

  /** Of a daemon before this one: nothing has happened that listeners would not know. */
  restore(entry: Entry): void {
    const { sandbox } = entry;
    this.#entries.set(sandbox.id, entry);
    if (sandbox.state !== 'dead' || entry.endedFor === undefined) void sandbox.ended.then(() => this.#died(entry));
    this.#schedule();
  }

  /** Throws SANDBOX_NOT_FOUND. */
  get(id: string): Entry {
    const entry = this.#entries.get(id);
    if (!entry) throw new ForkdError('SANDBOX_NOT_FOUND', { id });
    return entry;
  }

  find(id: string): Entry | undefined {
    return this.#entries.get(id);
  }

  /** Throws SANDBOX_NOT_FOUND: a second delete has nothing to do. */
  take(id: string): Entry {
    const entry = this.get(id);
    this.#entries.delete(id);
    this.events.sandbox('deleted', bodyOf(entry));
    return entry;
  }

  /** Runs a call; meanwhile the sandbox is not idle. Throws SANDBOX_NOT_FOUND, SANDBOX_HELD. */
  async active<T>(id: string, call: (entry: Entry) => Promise<T>): Promise<T> {
    const entry = this.get(id);
    requireFree(entry);
    entry.calls++;
    try {
      const answer = await call(entry);
      // What it did after its state was taken is lost, so it must not be told as done.
      requireFree(entry);
      return answer;
    } finally {
      entry.calls--;
      entry.lastActive = Date.now();
    }
  }

  /** Notes where its newest branch is; it may be gone by then. */
  branched(id: string, memoryPath: string): Entry | undefined {
    const entry = this.#entries.get(id);
    if (entry) entry.lastBranchMemory = memoryPath;
    return entry;
  }

  /** By id. */
  list(): Entry[] {
    return [...this.#entries.values()].sort((a, b) => (a.sandbox.id < b.sandbox.id ? -1 : 1));
  }

  get running(): number {
    return [...this.#entries.values()].filter(({ sandbox }) => sandbox.state !== 'dead').length;
  }

  close(): void {
    clearTimeout(this.#timer);
  }

  #died(entry: Entry): void {
    if (this.#entries.get(entry.sandbox.id) !== entry) return;
    this.events.sandbox('died', bodyOf(entry));
    const dead = [...this.#entries.values()].filter(({ sandbox }) => sandbox.state === 'dead');
    if (dead.length > limits.deadMax && dead[0]) this.take(dead[0].sandbox.id);
  }

  /** One timer, for whichever is due first. Calls only put a deadline off, so it may fire early and look again. */
  #schedule(): void {
    const due = Math.min(...[...this.#entries.values()].map(deadlineOf));
    if (due >= this.#fires || due === Number.POSITIVE_INFINITY) return;
    clearTimeout(this.#timer);
    this.#fires = due;
    this.#timer = setTimeout(() => this.#reap(), Math.min(Math.max(due - Date.now(), 0), TIMER_MAX_MS)).unref();
  }

  #reap(): void {
    this.#fires = Number.POSITIVE_INFINITY;
    const now = Date.now();
    for (const entry of this.#entries.values()) {
      if (deadlineOf(entry) > now) continue;
      const { expiresAt, idleSecs } = entry;
      entry.endedFor =
        expiresAt !== null && expiresAt <= now ? 'its time (ttl_secs) was over' : `it was idle for ${idleSecs} s`;
      this.kill(entry.sandbox);
    }
    this.#schedule();
  }
}

/** Its time begins now. */
export const newEntry = (sandbox: Sandbox, { labels = {}, ttlSecs = null, idleSecs = null }: Wishes = {}): Entry => {
  const now = Date.now();
  const expiresAt = ttlSecs === null ? null : now + ttlSecs * 1000;
  return { sandbox, labels, idleSecs, expiresAt, branches: 0, lastBranchMemory: null, lastActive: now, calls: 0 };
};

/** A timer of Node overflows at 24.8 days. */
const TIMER_MAX_MS = 2 ** 31 - 1;

const requireFree = ({ heldFor, sandbox: { id } }: Entry): void => {
  if (heldFor !== undefined) throw new ForkdError('SANDBOX_HELD', { id, reason: heldFor });
};

/** Milliseconds since the epoch at which it is to end; infinite when it is not, or has. */
const deadlineOf = ({ sandbox, expiresAt, idleSecs, lastActive, calls, endedFor, heldFor }: Entry): number => {
  if (sandbox.state === 'dead' || endedFor !== undefined || heldFor !== undefined) return Number.POSITIVE_INFINITY;
  const idle = idleSecs === null ? Number.POSITIVE_INFINITY : (calls > 0 ? Date.now() : lastActive) + idleSecs * 1000;
  return Math.min(expiresAt ?? Number.POSITIVE_INFINITY, idle);
};

export const bodyOf = (entry: Entry): SandboxBody => {
  const { sandbox, branches, lastBranchMemory, labels, expiresAt, idleSecs, lastActive, endedFor } = entry;
  const { birth, vmm } = sandbox;
  const dead = sandbox.state === 'dead';
  return {
    id: sandbox.id,
    snapshot_tag: birth.tag,
    netns: birth.netns ?? null,
    guest_addr: sandbox.address,
    network: birth.network?.info() ?? null,
    created_at_unix: sandbox.createdAt,
    pid: dead ? null : vmm.pid,
    memory_limit_mib: birth.cgroup?.limits.memoryMib ?? null,
    limits: limitsBody(birth.cgroup?.limits),
    held: sandbox.held(HELD_AGE_MS),
    receipt: sandbox.receipt ?? null,
    has_branched: branches > 0,
    last_branch_memory_path: lastBranchMemory,
    branch_count: branches,
    isolation: birth.isolation,
    status: dead ? 'dead' : 'running',
    reason: dead ? (endedFor ?? sandbox.death().message) : null,
    labels,
    expires_at_unix: expiresAt === null ? null : Math.ceil(expiresAt / 1000),
    idle_secs: idleSecs,
    last_active_unix: Math.floor(lastActive / 1000),
  };
};
