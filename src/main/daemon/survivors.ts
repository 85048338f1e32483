/**
 * Sandboxes that outlive the daemon: each is put into a keeper's hands and into the journal before it is acknowledged, and the
 * next daemon takes back what still runs (docs/decisions/0028). One that is not in the journal was never acknowledged; it ends
 * when nobody holds it.
 */
import { existsSync } from 'node:fs';
import type { FastifyBaseLogger } from 'fastify';
import { reasonOf } from '../../contract/errors.js';
import type { Labels } from '../../contract/rest.js';
import { keeperPath, native, shimPath, tetherPath } from '../../native/binding.js';
import type { Engine } from '../engine.js';
import { Keeper, type KeptFds } from '../sandbox/keeper.js';
import type { Sandbox } from '../sandbox/sandbox.js';
import { goneSandbox, keptFdsOf, recordOf, type SandboxRecord } from '../sandbox/take-over.js';
import type { Journal } from './journal.js';
import type { Entry, Registry } from './registry.js';

/** What the journal holds of a sandbox. */
interface JournalRecord extends SandboxRecord {
  labels: Labels;
  idle_secs: number | null;
  expires_at_unix_ms: number | null;
  branch_count: number;
  last_branch_memory_path: string | null;
  /** Whose sandbox it is. */
  workspace?: string;
  /** Why it has ended. */
  ended?: string;
}

/** The part of a workspace's record that says which sandbox is its own. */
interface Owner {
  status: string;
  live_sandbox_id?: string;
}

/** What keeps sandboxes alive without their daemon has not been built. */
export const tieProblem = (): string | undefined => {
  const missing = [keeperPath, tetherPath, shimPath].find((path) => !existsSync(path));
  return missing === undefined ? undefined : `${missing} is missing`;
};

export class Survivors {
  readonly #keeper: Keeper;

  constructor(
    readonly engine: Engine,
    readonly registry: Registry,
    readonly journal: Journal,
    readonly log: FastifyBaseLogger,
  ) {
    this.#keeper = new Keeper(`${journal.path}.keeper`, (reason) => log.warn(reason));
    registry.events.listen(({ kind, action, object }) => {
      if (kind !== 'sandbox' || !journal.has('sandboxes', object)) return;
      const entry = action === 'died' ? registry.find(object) : undefined;
      if (entry) this.#later(this.#write([entry]));
      if (action === 'deleted') this.#later(journal.remove('sandboxes', object));
    });
  }

  /** Settles when they will outlive the daemon, and with them that they are `workspace`'s. Throws KEEPER_FAILED and what the journal throws. */
  async acknowledge(entries: Entry[], workspace?: string): Promise<void> {
    this.#keep(entries.map(({ sandbox }) => sandbox));
    await this.#write(entries, workspace);
  }

  /** Settles when no later daemon will take it back. */
  async forget({ sandbox: { id } }: Entry): Promise<void> {
    if (this.journal.has('sandboxes', id)) await this.journal.remove('sandboxes', id);
  }

  /** Notes what has changed of it. */
  async update(entry: Entry): Promise<void> {
    if (this.journal.has('sandboxes', entry.sandbox.id)) await this.#write([entry]);
  }

  /** The daemon ends, and its sandboxes are to end with it. */
  async forgetAll(): Promise<void> {
    await this.journal.putAll(
      'sandboxes',
      this.journal.entries('sandboxes').map(([id]) => [id, undefined]),
    );
  }

  /** What it holds still, it goes on holding. */
  close(): void {
    this.#keeper.close();
  }

  /** Takes back what still runs, and ends sandboxes that are half made; what else a killed daemon left is tidy's. Returns what is worth telling. */
  async takeOver(): Promise<string[]> {
    const told: string[] = [];
    const records = new Map(this.journal.entries<JournalRecord>('sandboxes'));
    const kept = this.#keeper.takeOver();
    for (const [id, fds] of kept) {
      const record = records.get(id);
      const reason = record ? this.#halfMade(id, record) : 'it was not acknowledged';
      if (reason === undefined && record?.ended === undefined) continue;
      // Held by nobody from now on, it ends.
      for (const fd of Object.values(fds)) native.fdClose(fd);
      kept.delete(id);
      this.#keeper.forget([id]);
      if (reason === undefined) continue;
      if (records.delete(id)) await this.journal.remove('sandboxes', id);
      told.push(`sandbox ${id} is ended: ${reason}`);
    }
    told.push(...(await this.#claim(records, kept)));
    return told;
  }

  async #claim(records: Map<string, JournalRecord>, kept: Map<string, KeptFds>): Promise<string[]> {
    const told: string[] = [];
    const live = [...records].filter(([, { ended }]) => ended === undefined);
    const claims = live.map(([id, record]) => ({ id, record, fds: kept.get(id) }));
    const taken = await this.engine.takeOver(claims, (reason) => told.push(reason));
    const back: Entry[] = [];
    const ended: Entry[] = [];
    for (const one of taken) {
      const { id, record } = one.claim;
      const entry = entryOf('sandbox' in one ? one.sandbox : this.#gone(id, record), record as JournalRecord);
      if ('sandbox' in one) {
        back.push(entry);
        continue;
      }
      this.#keeper.forget([id]);
      entry.endedFor = one.reason;
      ended.push(entry);
      told.push(`sandbox ${id} is lost: ${one.reason}`);
    }
    await this.#write(ended);
    this.#hold(back.map(({ sandbox }) => sandbox));
    if (back.length > 0) told.push(`${back.length} sandboxes of the daemon before run on`);
    const dead = [...records].filter(([, record]) => record.ended !== undefined);
    for (const [id, record] of dead)
      ended.push({ ...entryOf(this.#gone(id, record), record), endedFor: record.ended ?? '' });
    for (const entry of [...back, ...ended]) this.registry.restore(entry);
    return told;
  }

  #gone(id: string, record: SandboxRecord): Sandbox {
    const sandbox = goneSandbox(id, record);
    sandbox.socket = this.engine.options.agentSocket ?? '';
    return sandbox;
  }

  /** The daemon died before its workspace had it, or after it had been suspended. */
  #halfMade(id: string, { workspace: name }: JournalRecord): string | undefined {
    if (name === undefined) return undefined;
    const owner = new Map(this.journal.entries<Owner>('workspaces')).get(name);
    if (owner?.status === 'running' && owner.live_sandbox_id === id) return undefined;
    return `it is not that of workspace ${name}`;
  }

  #keep(sandboxes: Sandbox[]): void {
    const entries = sandboxes.flatMap((sandbox): [string, KeptFds][] => {
      const fds = keptFdsOf(sandbox);
      return fds ? [[sandbox.id, fds]] : [];
    });
    if (entries.length === 0 || !this.engine.options.tied) return;
    this.#keeper.keep(entries);
    this.#dropAtEnd(sandboxes);
  }

  /** The keeper has them already. */
  #hold(sandboxes: Sandbox[]): void {
    for (const sandbox of sandboxes) {
      const fds = keptFdsOf(sandbox);
      if (fds) this.#keeper.adopt(sandbox.id, fds);
    }
    this.#dropAtEnd(sandboxes);
  }

  #dropAtEnd(sandboxes: Sandbox[]): void {
    for (const { id, ended } of sandboxes) void ended.then(() => this.#keeper.drop([id]));
  }

  async #write(entries: Entry[], workspace?: string): Promise<void> {
    const known = new Map(this.journal.entries<JournalRecord>('sandboxes'));
    await this.journal.putAll(
      'sandboxes',
      entries.map((entry) => [entry.sandbox.id, journaled(entry, known.get(entry.sandbox.id), workspace)]),
    );
  }

  #later(writing: Promise<void>): void {
    writing.catch((error: unknown) => this.log.error(`the journal cannot be written: ${reasonOf(error)}`));
  }
}

const journaled = (entry: Entry, known: JournalRecord | undefined, workspace = known?.workspace): JournalRecord => {
  const { sandbox, labels, idleSecs, expiresAt, branches, lastBranchMemory } = entry;
  return {
    // Of one that has ended, what was known while it ran.
    ...(known ?? recordOf(sandbox)),
    labels,
    idle_secs: idleSecs,
    expires_at_unix_ms: expiresAt,
    branch_count: branches,
    last_branch_memory_path: lastBranchMemory,
    ...(workspace === undefined ? {} : { workspace }),
    ...(sandbox.state === 'dead' ? { ended: entry.endedFor ?? sandbox.death().message } : {}),
  };
};

/** Its idle time begins anew: nobody could call it while there was no daemon. */
const entryOf = (sandbox: Sandbox, record: JournalRecord): Entry => ({
  sandbox,
  labels: record.labels,
  idleSecs: record.idle_secs,
  expiresAt: record.expires_at_unix_ms,
  branches: record.branch_count,
  lastBranchMemory: record.last_branch_memory_path,
  lastActive: Date.now(),
  calls: 0,
});
