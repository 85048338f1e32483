/**
 * Workspaces: a sandbox that can be put to disk and taken back, under a name that survives the daemon.
 *
 *     running --suspend--> suspended --resume--> running --(its sandbox ends, or the daemon)--> stale --resume--> running
 *
 * A record is on disk before what it tells is acknowledged. Suspending writes the new state, then the record that names
 * it, and only then ends the sandbox and removes the old state; what a crash leaves in between is in `to_remove`.
 */
import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import type { CreateWorkspaceBody, WorkspaceBody } from '../../contract/rest.js';
import { MEMORY_FILE } from '../../contract/snapshot.js';
import type { Context } from './context.js';
import type { Entry } from './registry.js';
import { spawn } from './spawn.js';

/** What is kept on disk. `status` is that of the last change; whether the sandbox still lives is found out. */
export interface Workspace extends WorkspaceBody {
  per_child_netns: boolean;
  memory_limit_mib: number | null;
  /** Tags that are half made or no longer needed. */
  to_remove: string[];
}

export class Workspaces {
  readonly #all = new Map<string, Workspace>();
  readonly #busy = new Set<string>();

  constructor(readonly context: Context) {
    for (const [name, one] of context.journal.entries<Workspace>('workspaces')) {
      this.#all.set(name, one);
      if (one.netns !== undefined) context.engine.namespaces.keep(one.netns);
    }
    context.events.listen(({ kind, action, object }) => {
      if (kind !== 'sandbox' || (action !== 'died' && action !== 'deleted')) return;
      const lost = [...this.#all.values()].find((one) => one.live_sandbox_id === object);
      if (lost && !this.#busy.has(lost.name)) context.events.workspace('stale', this.#bodyOf(lost));
    });
  }

  /** Removes what a crash left. Returns what is worth telling. */
  async recover(): Promise<string[]> {
    const told: string[] = [];
    for (const one of [...this.#all.values()]) {
      if (one.status === 'running' && this.#bodyOf(one).status === 'stale')
        told.push(`workspace ${one.name} is stale: its sandbox has ended`);
      const left = await this.#sweep(one);
      const removed = one.to_remove.filter((tag) => !left.includes(tag));
      if (removed.length === 0) continue;
      await this.#keep({ ...one, to_remove: left });
      told.push(`removed ${removed.join(', ')}: left over of workspace ${one.name}`);
    }
    return told;
  }

  /** By name. */
  list(): WorkspaceBody[] {
    return [...this.#all.values()].sort((a, b) => (a.name < b.name ? -1 : 1)).map((one) => this.#bodyOf(one));
  }

  /** Throws WORKSPACE_NOT_FOUND. */
  get(name: string): WorkspaceBody {
    return this.#bodyOf(this.#find(name));
  }

  /** Throws WORKSPACE_EXISTS, WORKSPACE_BUSY, and what a spawn throws. */
  create(body: CreateWorkspaceBody): Promise<WorkspaceBody> {
    const { name, snapshot_tag: tag, per_child_netns: netns, memory_limit_mib: limit = null, network, labels } = body;
    if (this.#all.has(name)) throw new ForkdError('WORKSPACE_EXISTS', { name });
    return this.#alone(name, async () => {
      const born = {
        name,
        source_snapshot_tag: tag,
        per_child_netns: netns,
        memory_limit_mib: limit,
        to_remove: [],
        ...(network ? { network } : {}),
        ...(labels === undefined ? {} : { labels }),
      };
      const now = unixNow();
      const record = { ...born, id: '', status: 'running' as const, created_at_unix: now, last_active_unix: now };
      return this.#start(record, tag, 'created');
    });
  }

  /** Throws WORKSPACE_NOT_FOUND, WORKSPACE_BUSY, WORKSPACE_STATE, BRANCHES_FULL and what a branch throws; then it runs on. */
  suspend(name: string): Promise<WorkspaceBody> {
    return this.#alone(name, async () => {
      const one = this.#find(name);
      const { status, live_sandbox_id: id = '' } = this.#bodyOf(one);
      if (status !== 'running') throw new ForkdError('WORKSPACE_STATE', { name, status });
      const { registry, engine, slots, events, survivors } = this.context;
      const entry = registry.get(id);
      const leave = slots.enter();
      // A call that is answered after the state was taken would be lost with the sandbox.
      entry.heldFor = 'its workspace is being suspended';
      let suspended: Workspace;
      try {
        suspended = await this.#save(one, entry);
      } catch (error) {
        delete entry.heldFor;
        throw error;
      } finally {
        leave();
      }
      await survivors.forget(entry);
      registry.take(id);
      await engine.kill([entry.sandbox]);
      const body = this.#bodyOf(suspended);
      events.workspace('suspended', body);
      const left = await this.#sweep(suspended);
      if (left.length < suspended.to_remove.length) await this.#keep({ ...suspended, to_remove: left });
      return body;
    });
  }

  /** Throws WORKSPACE_NOT_FOUND, WORKSPACE_BUSY, WORKSPACE_STATE, and what a spawn throws; then it is as it was. */
  resume(name: string): Promise<WorkspaceBody> {
    return this.#alone(name, () => {
      const one = this.#find(name);
      if (this.#bodyOf(one).status === 'running') throw new ForkdError('WORKSPACE_STATE', { name, status: 'running' });
      return this.#start(one, one.current_state_tag ?? one.source_snapshot_tag, 'resumed');
    });
  }

  /** Ends its sandbox and removes its state, but for a state that other snapshots are made of. Throws WORKSPACE_NOT_FOUND, WORKSPACE_BUSY. */
  remove(name: string): Promise<void> {
    return this.#alone(name, async () => {
      const one = this.#find(name);
      const body = this.#bodyOf(one);
      const { journal, registry, engine, events, survivors } = this.context;
      await journal.remove('workspaces', name);
      this.#all.delete(name);
      if (one.netns !== undefined) engine.namespaces.letGo(one.netns);
      const entry = registry.find(one.live_sandbox_id ?? '');
      if (entry) {
        await survivors.forget(entry);
        registry.take(entry.sandbox.id);
        await engine.kill([entry.sandbox]);
      }
      events.workspace('deleted', body);
      const { current_state_tag: state, ...rest } = one;
      await this.#sweep({ ...rest, to_remove: [...one.to_remove, ...(state === undefined ? [] : [state])] });
    });
  }

  async #start(one: Workspace, tag: string, action: 'created' | 'resumed'): Promise<WorkspaceBody> {
    const { snapshots, registry, engine, events, survivors } = this.context;
    snapshots.requireReady(tag);
    const { per_child_netns: perChildNetns, memory_limit_mib: limit, network, netns, labels } = one;
    const request = {
      tag,
      n: 1,
      perChildNetns,
      ...(netns === undefined ? {} : { netns }),
      ...(network ? { network: { allow: network.allow, allowDomains: network.allow_domains } } : {}),
      ...(limit === null ? {} : { memoryLimitMib: limit }),
    };
    const wishes = labels === undefined ? {} : { labels };
    const [entry] = await spawn(this.context, request, wishes, one.name);
    if (!entry) throw new ForkdError('INTERNAL', { reason: 'a spawn without a sandbox' });
    const { sandbox } = entry;
    const { netns: given } = sandbox.birth;
    const running: Workspace = {
      ...one,
      ...(given === undefined ? {} : { netns: given }),
      id: one.id || `ws-${sandbox.id.slice(0, 16)}`,
      status: 'running',
      live_sandbox_id: sandbox.id,
      last_active_unix: unixNow(),
    };
    try {
      await this.#keep(running);
    } catch (error) {
      await engine.kill([sandbox]);
      await survivors.forget(entry).catch(() => undefined);
      throw error;
    }
    registry.add(entry);
    if (netns !== undefined && netns !== given) engine.namespaces.letGo(netns);
    if (given !== undefined) engine.namespaces.keep(given);
    const body = this.#bodyOf(running);
    events.workspace(action, body);
    return body;
  }

  /** Writes the sandbox to a new tag and the record that names it. Whatever fails, nothing is left but the record as it was. */
  async #save(one: Workspace, entry: Entry): Promise<Workspace> {
    const { engine, snapshots, metrics } = this.context;
    const { store } = engine;
    const { id } = entry.sandbox;
    const { current_state_tag: old } = one;
    const [first, second] = freeTags(one.name, (tag) => store.exists(tag));
    try {
      await this.#keep({ ...one, to_remove: [...one.to_remove, first, second] });
      const branch = await engine.branchInto(id, { tag: first });
      metrics.branchPause.observe(branch.pause_us / 1e6);
      const facts = { branched_from: id, pause_ms: Math.round(branch.pause_us / 1000) };
      const [dir, created_at_unix] = [store.dir(first), unixNow()];
      snapshots.writing({ tag: first, dir, created_at_unix, status: 'writing', bootable: false, ...facts });
      await branch.written.catch((error: unknown) => {
        snapshots.failed(first, reasonOf(error));
        throw error;
      });
      await snapshots.written(first, facts);
      let state = first;
      if (old !== undefined && store.chain(first).some(({ tag }) => tag === old)) {
        // It would keep the old state, and with each suspension the chain would be a link longer.
        await engine.compact({ from: first, to: second });
        await snapshots.written(second, facts);
        state = second;
      }
      const { live_sandbox_id: _, ...rest } = one;
      const unneeded = [...one.to_remove, ...(old === undefined ? [] : [old]), ...(state === first ? [] : [first])];
      const suspended: Workspace = {
        ...rest,
        status: 'suspended',
        current_state_tag: state,
        last_branch_memory_path: join(store.dir(state), MEMORY_FILE),
        last_active_unix: unixNow(),
        to_remove: unneeded,
      };
      await this.#keep(suspended);
      return suspended;
    } catch (error) {
      await this.#sweep({ ...one, to_remove: [first, second] });
      await this.#keep(one).catch(() => undefined);
      throw error;
    }
  }

  /** On disk, then in memory: what cannot be kept has not happened. */
  async #keep(one: Workspace): Promise<void> {
    await this.context.journal.put('workspaces', one.name, one);
    this.#all.set(one.name, one);
  }

  /** Returns what could not be removed: something is made of it, or uses it. */
  async #sweep({ to_remove: tags, current_state_tag: state, name }: Workspace): Promise<string[]> {
    const { engine, snapshots, log } = this.context;
    const left: string[] = [];
    // Children before their parents: they were made later.
    for (const tag of [...tags].reverse()) {
      if (tag === state) continue;
      try {
        await engine.forgetTemplates(tag);
        snapshots.forgetFailed(tag);
        if (engine.store.exists(tag)) snapshots.remove(tag);
      } catch (error) {
        left.unshift(tag);
        log.warn({ workspace: name, tag }, `a state that is not needed stays: ${reasonOf(error)}`);
      }
    }
    return left;
  }

  #find(name: string): Workspace {
    const one = this.#all.get(name);
    if (!one) throw new ForkdError('WORKSPACE_NOT_FOUND', { name });
    return one;
  }

  async #alone<T>(name: string, work: () => Promise<T>): Promise<T> {
    if (this.#busy.has(name)) throw new ForkdError('WORKSPACE_BUSY', { name });
    this.#busy.add(name);
    try {
      return await work();
    } finally {
      this.#busy.delete(name);
    }
  }

  #bodyOf(one: Workspace): WorkspaceBody {
    const { per_child_netns: _, memory_limit_mib: __, to_remove: ___, live_sandbox_id: id, ...rest } = one;
    if (rest.status !== 'running') return rest;
    const entry = this.context.registry.find(id ?? '');
    if (!entry || entry.sandbox.state === 'dead') return { ...rest, status: 'stale' };
    return {
      ...rest,
      ...(id === undefined ? {} : { live_sandbox_id: id }),
      last_active_unix: Math.floor(entry.lastActive / 1000),
    };
  }
}

const unixNow = (): number => Math.floor(Date.now() / 1000);

/** Characters of a name in the tag of its state: with what is around them they fit a tag. */
const NAME_CHARS = 40;

/** Two tags that are not there: `ws-NAME-state`, the reference's, and with a number behind it. A long name is cut, with a digest of all of it. */
const freeTags = (name: string, isTaken: (tag: string) => boolean): [string, string] => {
  const sum = createHash('sha256').update(name).digest('hex').slice(0, 8);
  const stem = `ws-${name.length > NAME_CHARS ? `${name.slice(0, NAME_CHARS - 9)}-${sum}` : name}-state`;
  const free: string[] = [];
  for (let n = 1; free.length < 2; n++) {
    const tag = n === 1 ? stem : `${stem}-${n}`;
    if (!isTaken(tag)) free.push(tag);
  }
  return free as [string, string];
};
