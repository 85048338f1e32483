/** Templates on demand: the one of a tag is started when children are first asked for, and keeps its spares. It stays until the engine closes or memory runs short. */
import type { SnapshotManifest } from '../../contract/snapshot.js';
import type { EngineOptions } from '../engine-options.js';
import { type Jails, termsOf } from '../host/jails.js';
import { hostResources } from '../host/resources.js';
import type { ForkHooks } from '../hooks.js';
import type { LoadOptions } from '../load-snapshot.js';
import type { LoadedSnapshot } from '../memory/loaded.js';
import type { ForkRequest } from '../planner/plan.js';
import type { Pool } from '../pool.js';
import type { VmmDriver } from '../vmm/driver.js';
import { Template } from './template.js';
import { Templates } from './templates.js';
import { warmRounds } from './warmth.js';

/** What a template rehearses when the request names nothing: evaluates a name, and numpy where it is there. */
const WARM_EVAL = "numpy.zeros(5).tolist() if 'numpy' in globals() else None";

export interface SupplyContext {
  pool: Pool;
  jails: Jails;
  driver: () => Promise<VmmDriver>;
  load: (tag: string, options: LoadOptions) => Promise<LoadedSnapshot>;
  options: Pick<EngineOptions, 'resident' | 'spares' | 'eager' | 'tied' | 'jail'>;
}

export class TemplateSupply {
  readonly #templates = new Templates();
  readonly #context: SupplyContext;

  constructor(context: SupplyContext) {
    this.#context = context;
  }

  /** Templates, and children forked ahead that wait. */
  get state(): { templates: number; spares: number } {
    const { count, spares } = this.#templates;
    return { templates: count, spares };
  }

  has(manifest: SnapshotManifest): boolean {
    return this.#templates.has(manifest);
  }

  /** The template of a tag: the one that is there, or a new one. */
  async obtain(manifest: SnapshotManifest, request: ForkRequest, hooks: ForkHooks): Promise<Template> {
    await this.relieve();
    return this.#templates.obtain(manifest, () => this.#start(request, hooks));
  }

  async #start(request: ForkRequest, hooks: ForkHooks): Promise<Template> {
    const { pool, jails, load, options } = this.#context;
    const { signal, onLoad } = hooks;
    const { resident = false, eager = false } = options;
    const snapshot = await load(request.tag, {
      hugePages: request.hugePages ?? false,
      lazy: !(request.eager || eager),
      ...(onLoad ? { onLoad } : {}),
    });
    try {
      const firstEval = request.firstEval ?? WARM_EVAL;
      const driver = await this.#context.driver();
      const template = await jails.use(termsOf(request, hooks), (make) =>
        Template.start({
          pool,
          driver,
          snapshot,
          rounds: warmRounds(request.n, resident),
          width: Math.min(pool.width, resident ? pool.width : request.n),
          firstEval,
          ...(make ? { jail: make() } : {}),
          ...(signal ? { signal } : {}),
        }),
      );
      this.#keepSpares(template, firstEval);
      return template;
    } catch (error) {
      snapshot.close();
      throw error;
    }
  }

  /** Keeps one that is there already, of a tag that was made of it. */
  async adopt(manifest: SnapshotManifest, template: Template): Promise<void> {
    await this.#templates.adopt(manifest, template);
    this.#keepSpares(template, WARM_EVAL);
  }

  #keepSpares(template: Template, firstEval: string): void {
    const { pool, options } = this.#context;
    const { spares: count = 0, resident = false, tied = false, jail } = options;
    if (resident && count > 0) template.keepSpares({ count, pool, firstEval, tied, unlimited: jail === false });
  }

  /** Gives up idle templates when less than the floor is available; returns how many. */
  relieve(memoryAvailable = hostResources().memoryAvailable): Promise<number> {
    return this.#templates.relieve(memoryAvailable);
  }

  /** Gives up the templates of a tag. Children live on. */
  forget(tag: string): Promise<void> {
    return this.#templates.forget(tag);
  }

  close(): Promise<void> {
    return this.#templates.close();
  }
}
