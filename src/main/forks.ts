/** Makes children by the way that their plan says: hot, from a template, or cold, each from the snapshot; cold too where hot turns out not to go. */
import { ForkdError } from '../contract/errors.js';
import { parseTag } from '../contract/names.js';
import { hasCard, type Isolation, type SnapshotManifest } from '../contract/snapshot.js';
import type { EngineOptions } from './engine-options.js';
import type { ForkHooks } from './hooks.js';
import { type Jails, termsOf } from './host/jails.js';
import { requireStrict } from './host/strict.js';
import type { LiveBranches } from './live-branches.js';
import type { LoadOptions } from './load-snapshot.js';
import type { LoadedSnapshot } from './memory/loaded.js';
import { deadEnd, type HostTap, hostTap } from './network/host-tap.js';
import type { Networks } from './network/networks.js';
import { hostState } from './planner/host-state.js';
import type { Namespaces } from './planner/namespaces.js';
import { type ForkRequest, type HostState, type Plan, planFork } from './planner/plan.js';
import { type FanOut, type Origin, type RunContext, runFork } from './planner/run.js';
import type { Pool } from './pool.js';
import { end } from './sandbox/end.js';
import type { Roster } from './sandbox/roster.js';
import type { Store } from './store/store.js';
import type { TemplateSupply } from './template/supply.js';
import type { Template } from './template/template.js';
import { Undo } from './undo.js';
import type { VmmDriver } from './vmm/driver.js';

export interface ForkResult extends Omit<FanOut, 'workDir'> {
  tag: string;
  isolation: Isolation;
  mechanism: string;
  /** Milliseconds: memory image made ready; then from the request to the processes, until the last child had answered. */
  load_ms: number;
  ready_ms: number;
}

export interface ForksContext {
  pool: Pool;
  store: Store;
  jails: Jails;
  networks: Networks;
  namespaces: Namespaces;
  /** Where children go. */
  roster: Roster;
  templates: Pick<TemplateSupply, 'has' | 'obtain'>;
  branches: Pick<LiveBranches, 'unwritten'>;
  driver: () => Promise<VmmDriver>;
  load: (tag: string, options: LoadOptions) => Promise<LoadedSnapshot>;
  options: Pick<EngineOptions, 'resident' | 'tied' | 'jail' | 'strict'>;
}

/** One request under way. */
interface Job {
  request: ForkRequest;
  plan: Plan;
  hooks: ForkHooks;
  began: number;
}

export class Forks {
  readonly #context: ForksContext;

  constructor(context: ForksContext) {
    this.#context = context;
  }

  async fromTag(request: ForkRequest, hooks: ForkHooks): Promise<ForkResult> {
    const { store, templates, branches, namespaces, options } = this.#context;
    if (request.strict || options.strict) requireStrict();
    const began = performance.now();
    const branch = branches.unwritten(request.tag);
    if (branch) {
      const plan = planFork(request, branch.manifest, this.#hostState(true, request));
      return this.#hot(branch, { request, plan, hooks, began });
    }
    const manifest = store.open(parseTag(request.tag));
    const plan = planFork(request, manifest, this.#hostState(templates.has(manifest), request));
    return namespaces.during(plan, () => this.#asPlanned(manifest, { request, plan, hooks, began }));
  }

  async fromTemplate(template: Template, request: ForkRequest, hooks: ForkHooks): Promise<ForkResult> {
    const plan = planFork(request, template.manifest, this.#hostState(true, request));
    return this.#hot(template, { request, plan, hooks, began: performance.now() });
  }

  #hostState(hasTemplate: boolean, { netns }: Pick<ForkRequest, 'netns'>): HostState {
    const { namespaces, roster, options } = this.#context;
    return hostState(namespaces.takenBy(roster.all, netns), hasTemplate || (options.resident ?? false));
  }

  async #asPlanned(manifest: SnapshotManifest, job: Job): Promise<ForkResult> {
    const { request, plan, hooks } = job;
    const { networks, templates } = this.#context;
    const { fallback } = plan;
    if (fallback !== undefined) hooks.onFallback?.(fallback);
    // Beside the template: whoever takes them hears what goes wrong.
    if (plan.network) void networks.fill(plan.children.length).catch(() => undefined);
    if (plan.mechanism === 'cold-restore') return this.#cold(job);
    let template: Template;
    try {
      template = await templates.obtain(manifest, request, hooks);
    } catch (error) {
      const failure = ForkdError.from(error);
      if (!failure.code.startsWith('HOTFORK_')) throw failure;
      hooks.onFallback?.(failure.message);
      return this.#cold({ ...job, plan: { ...plan, mechanism: 'cold-restore', fallback: failure.message } });
    }
    return this.#hot(template, job);
  }

  async #hot(template: Template, job: Job): Promise<ForkResult> {
    const { plan } = job;
    const { driver, options } = this.#context;
    const { snapshot } = template;
    const cold = snapshot ? { driver: await driver(), snapshot } : undefined;
    // A spare was born without these limits, and has used what it has used; nor has it a network.
    const spares = Object.keys(plan.limits).length === 0 && !plan.network ? template.spares : undefined;
    const origin = { lanes: template.lanes, ...(spares ? { spares } : {}), ...(cold ? { cold } : {}) };
    // Who would load what is missing, once this process is gone? It would read as zeros.
    await (options.tied ? snapshot?.memory.complete() : snapshot?.memory.beforeFork());
    try {
      return await this.#run(job, { origin });
    } finally {
      snapshot?.memory.populate();
      // After this fan-out, not beside it.
      void template.spares?.fill();
    }
  }

  async #cold(job: Job): Promise<ForkResult> {
    const { request, plan, hooks } = job;
    const { jails, driver, load, options } = this.#context;
    const snapshot = await load(request.tag, {
      hugePages: request.hugePages ?? false,
      ...(hooks.onLoad ? { onLoad: hooks.onLoad } : {}),
    });
    const undo = new Undo();
    try {
      const connection = connectionOf(plan, options.tied);
      if (connection) undo.push(() => connection.close());
      const origin = { cold: { driver: await driver(), snapshot } };
      const from = connection ? { origin, hostTap: connection.tap } : { origin };
      const result = await jails.use(termsOf(request, hooks), (make) => this.#run(job, from, make));
      if (!connection) return result;
      undo.push(() => end(result.sandboxes));
      connection.open();
      undo.clear();
      void Promise.all(result.sandboxes.map(({ ended }) => ended)).then(() => connection.close());
      return result;
    } finally {
      await undo.run();
      snapshot.close();
    }
  }

  async #run(
    { request, plan, hooks, began }: Job,
    from: { origin: Origin } & Pick<RunContext, 'hostTap'>,
    make = this.#context.jails.make,
  ): Promise<ForkResult> {
    const { pool, networks, roster, options } = this.#context;
    const { signal, onReady, onFallback, keepWorkDir } = hooks;
    const unlimited = options.jail === false && Object.keys(plan.limits).length === 0;
    const forking = performance.now();
    const { workDir, ...fanOut } = await runFork(plan, request, {
      pool,
      networks,
      ...from,
      tied: options.tied ?? false,
      ...(make ? { makeJail: make } : {}),
      onEnd: (sandbox) => roster.forget(sandbox),
      ...(signal ? { signal } : {}),
      ...(onReady ? { onReady } : {}),
      ...(onFallback ? { onFallback } : {}),
    });
    const ready = performance.now();
    for (const sandbox of fanOut.sandboxes) roster.add(sandbox);
    if (!unlimited) roster.join(fanOut.sandboxes);
    roster.closeWithLast(fanOut.sandboxes, () => workDir.close(keepWorkDir));
    const { tag, isolation, mechanism } = plan;
    return { ...fanOut, tag, isolation, mechanism, load_ms: forking - began, ready_ms: ready - forking };
  }
}

/** What the cards of children without a network of their own are connected to. */
const connectionOf = ({ network, snapshot, children }: Plan, tied = false): HostTap | undefined => {
  if (network || !hasCard(snapshot) || children.some(({ netns }) => netns !== undefined)) return undefined;
  return snapshot.tap === undefined ? deadEnd() : hostTap(snapshot.tap, tied);
};
