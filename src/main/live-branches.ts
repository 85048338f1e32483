/** Branches of running sandboxes: frozen copies, which are templates at once; and tags, as soon as they are on disk. */
import { ForkdError } from '../contract/errors.js';
import type { SnapshotManifest } from '../contract/snapshot.js';
import type { SourcePort } from '../contract/task.js';
import { ticksNow } from './host/process.js';
import type { Pool } from './pool.js';
import type { Roster } from './sandbox/roster.js';
import type { Sandbox } from './sandbox/sandbox.js';
import { endStrays } from './sandbox/strays.js';
import type { Store } from './store/store.js';
import type { TemplateSupply } from './template/supply.js';
import { Template } from './template/template.js';
import { reserveTag, type WriteBranchRequest, type WrittenBranch, writeBranch } from './write-branch.js';

export interface Branch {
  template: Template;
  /** How long the source stood still, microseconds. */
  pause_us: number;
}

export interface TagBranch extends Branch {
  written: Promise<WrittenBranch>;
}

export interface BranchContext {
  pool: Pool;
  store: Store;
  roster: Pick<Roster, 'get'>;
  /** It has the template of a tag that was written. */
  templates: Pick<TemplateSupply, 'adopt'>;
}

export class LiveBranches {
  readonly #context: BranchContext;
  readonly #branches = new Set<Template>();
  /** Branches whose tags are not on disk yet. */
  readonly #unwritten = new Map<string, Template>();
  readonly #writing = new Set<Promise<WrittenBranch>>();
  /** Sandboxes whose conversation with their shim broke off in the middle, and since when: the next answers are to what was asked before. */
  readonly #brokenOff = new WeakMap<Sandbox, number>();

  constructor(context: BranchContext) {
    this.#context = context;
  }

  get count(): number {
    return this.#branches.size;
  }

  /** Of a tag that is not on disk yet. */
  unwritten(tag: string): Template | undefined {
    return this.#unwritten.get(tag);
  }

  /** Throws BRANCH_UNSUPPORTED. */
  async branch(id: string): Promise<Branch> {
    const sandbox = this.#context.roster.get(id);
    const { source } = sandbox;
    const { snapshot } = sandbox.birth;
    if (!source)
      throw new ForkdError('BRANCH_UNSUPPORTED', { id, reason: 'it was restored cold, without the hot-fork shim' });
    if (!snapshot)
      throw new ForkdError('BRANCH_UNSUPPORTED', { id, reason: 'the snapshot that it comes from is gone' });
    const { template, pauseUs } = await sandbox.lend(async () => {
      // Its source's groups are emptied when that ends.
      await sandbox.joined;
      const copy = () => this.#copy(sandbox, source, snapshot);
      return sandbox.inTurn(() => (sandbox.isAttached ? sandbox.agent.quiet(copy) : copy()));
    });
    this.#branches.add(template);
    return { template, pause_us: pauseUs };
  }

  async #copy(sandbox: Sandbox, source: SourcePort, snapshot: SnapshotManifest) {
    await this.#regain(sandbox, source);
    const since = ticksNow();
    try {
      return await Template.branch(source, snapshot, this.#context.pool, 1, sandbox.birth.cgroup?.outside ?? []);
    } catch (error) {
      const { code } = ForkdError.from(error);
      if (code === 'WORKER_DIED' || code === 'HOTFORK_BROKEN') this.#brokenOff.set(sandbox, since);
      // A copy may be on its way. A shim that did not answer in time would not now: it is waited for when it is needed.
      if (code === 'WORKER_DIED') await this.#regain(sandbox, source).catch(() => undefined);
      throw error;
    }
  }

  /** Takes up the conversation, where it broke off: a copy that comes of it ends. Throws HOTFORK_BROKEN. */
  async #regain(sandbox: Sandbox, { name, controlFd }: SourcePort): Promise<void> {
    const since = this.#brokenOff.get(sandbox);
    if (since === undefined) return;
    try {
      const { lost } = await this.#context.pool.run('regain', { shims: [{ name, controlFd }] });
      const [silent] = lost;
      if (silent) throw new ForkdError('HOTFORK_BROKEN', { vm: name, reason: silent.reason });
      this.#brokenOff.delete(sandbox);
    } finally {
      await endStrays(undefined, new Set(), since);
    }
  }

  /** Throws SNAPSHOT_EXISTS, SNAPSHOT_BUSY, BRANCH_UNSUPPORTED. */
  async branchInto(id: string, options: { tag: string; force?: boolean }): Promise<TagBranch> {
    const request = { ...options, branchedFrom: id };
    const lock = reserveTag(this.#context.store, request);
    let branch: Branch;
    try {
      branch = await this.branch(id);
    } catch (error) {
      lock.release();
      throw error;
    }
    this.#unwritten.set(options.tag, branch.template);
    const written = this.#write(branch.template, request).finally(() => {
      this.#unwritten.delete(options.tag);
      lock.release();
    });
    this.#writing.add(written);
    const done = () => this.#writing.delete(written);
    written.then(done, done);
    return { ...branch, written };
  }

  async #write(template: Template, request: WriteBranchRequest): Promise<WrittenBranch> {
    const { store, pool, templates } = this.#context;
    try {
      const written = await writeBranch(template, request, { store, pool });
      this.#branches.delete(template);
      await templates.adopt(written.manifest, template);
      return written;
    } catch (error) {
      await this.retire(template);
      throw error;
    }
  }

  /** Ends a template that `branch` made. Its children live on. */
  async retire(template: Template): Promise<void> {
    this.#branches.delete(template);
    await template.retire();
  }

  /** Every tag is on disk, or will not be. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#writing);
  }

  async close(): Promise<void> {
    await Promise.all([...this.#branches].map((template) => this.retire(template)));
  }
}
