/** Branches of running sandboxes: frozen copies, which are templates at once; and tags, as soon as they are on disk. */
import { ForkdError } from '../contract/errors.js';
import type { Pool } from './pool.js';
import type { Roster } from './sandbox/roster.js';
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
      const outside = sandbox.birth.cgroup?.outside ?? [];
      const copy = () => Template.branch(source, snapshot, this.#context.pool, 1, outside);
      return sandbox.inTurn(() => (sandbox.isAttached ? sandbox.agent.quiet(copy) : copy()));
    });
    this.#branches.add(template);
    return { template, pause_us: pauseUs };
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
