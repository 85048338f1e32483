/**
 * A template: a VM that was started from a snapshot, walked through what a child does first, and frozen. Children are
 * forked from it. A second frozen copy of it, made by the same means, lets two processors fork at once.
 */
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { hasCard, type SnapshotManifest } from '../../contract/snapshot.js';
import type { SourcePort, StartedVmm, TaskEvent } from '../../contract/task.js';
import { shimPath } from '../../native/binding.js';
import type { Jail } from '../host/jail.js';
import { WorkDir } from '../host/workdir.js';
import { deadEnd } from '../network/host-tap.js';
import type { LoadedSnapshot } from '../memory/loaded.js';
import { end } from '../sandbox/end.js';
import { Sandbox } from '../sandbox/sandbox.js';
import type { Pool } from '../pool.js';
import { Undo } from '../undo.js';
import { VmmFd, type VmmDriver } from '../vmm/driver.js';
import { Lane } from './lane.js';
import { rehearsalIdentity } from './rehearsal.js';
import { Spares, type SparesOptions } from './spares.js';

export interface TemplateOptions {
  pool: Pool;
  driver: VmmDriver;
  snapshot: LoadedSnapshot;
  /** Rounds of warming (warmth.ts decides). */
  rounds: number;
  /** Processors to fork on: that many frozen copies. */
  width: number;
  firstEval?: string;
  /** Without one it runs as this process's own user, with all that is open to him. */
  jail?: Jail;
  signal?: AbortSignal;
}

export interface TemplateTimes {
  load_ms: number;
  warm_ms: number;
  /** Copies for the other processors. */
  copy_ms: number;
}

export class Template {
  readonly #undo: Undo;
  /** Children forked ahead, when it keeps some. */
  spares: Spares | undefined;

  private constructor(
    readonly manifest: SnapshotManifest,
    readonly lanes: Lane[],
    readonly times: TemplateTimes,
    undo: Undo,
    /** What it was started from; a branch has none. */
    readonly snapshot?: LoadedSnapshot,
  ) {
    this.#undo = undo;
  }

  /** True while every process of it lives. */
  get isAlive(): boolean {
    return this.lanes.length > 0 && this.lanes.every(({ vm }) => vm.state !== 'dead');
  }

  get isIdle(): boolean {
    return this.lanes.every((lane) => !lane.isBusy);
  }

  /** Starts, warms and freezes one; it owns `snapshot` from then on. Throws HOTFORK_REFUSED, HOTFORK_BROKEN and what a restore throws; then nothing is left. */
  static async start(options: TemplateOptions): Promise<Template> {
    const { pool, driver, snapshot, rounds, width, firstEval, jail, signal } = options;
    const { manifest, memory } = snapshot;
    const undo = new Undo();
    const vms: Sandbox[] = [];
    const onAbort = () => vms.forEach((vm) => void vm.kill());
    try {
      signal?.throwIfAborted();
      signal?.addEventListener('abort', onAbort);
      const workDir = WorkDir.create('template', manifest.tag);
      undo.push(() => workDir.close());
      undo.push(() => endTemplate(vms));
      const consolePath = workDir.file('template.console');
      const connection = hasCard(manifest) ? deadEnd() : undefined;
      if (connection) undo.push(() => connection.close());
      const vmm = driver.template(
        snapshot.hardware,
        {
          name: 'the template',
          consolePath,
          memfd: memory.memfd,
          lazy: memory.server !== undefined,
          ...(connection ? { tap: connection.tap } : {}),
          ...(snapshot.remote ? { arrivals: snapshot.remote.arrivals } : {}),
        },
        shimPath,
      );
      const adopt = adoptInto(vms, manifest, consolePath);
      const { port, load_ms, warm_ms } = await pool.run(
        'template',
        {
          vmm: jail ? { ...vmm, confinement: jail.confinement } : vmm,
          ...(jail ? { jail: jail.terms } : {}),
          controlTarget: VmmFd.control,
          stateFd: snapshot.stateFd,
          stateTarget: VmmFd.state,
          rehearsal: rehearsalIdentity(),
          ...(memory.server === undefined
            ? {}
            : { faults: { server: memory.server, target: VmmFd.faults, imageBytes: memory.bytes } }),
          rounds,
          answerMs: limits.firstAnswerSecs * 1000,
          ...(firstEval === undefined ? {} : { firstEval }),
        },
        adopt,
      );
      const first = { ...port, name: 'the template' };
      const times = { load_ms, warm_ms, copy_ms: 0 };
      const template = new Template(manifest, [new Lane(first, vms[0] as Sandbox)], times, undo, snapshot);
      await template.#widen(width, pool, first, adopt, vms);
      signal?.throwIfAborted();
      undo.push(() => snapshot.close());
      return template;
    } catch (error) {
      const loss = vms.map((vm) => vm.loss()).find((found) => found !== undefined);
      await undo.run();
      if (signal?.aborted) throw new ForkdError('CANCELLED');
      // Told of the snapshot, with all that is wrong with it, rather than of a process.
      if (loss) await memory.complete();
      throw loss ?? error;
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** A template made of a running VM, which goes on. Its pause is in `pauseUs`. */
  static async branch(
    source: SourcePort,
    manifest: SnapshotManifest,
    pool: Pool,
    width: number,
    cgroupProcs: string[] = [],
  ): Promise<{ template: Template; pauseUs: number }> {
    const undo = new Undo();
    const vms: Sandbox[] = [];
    try {
      const workDir = WorkDir.create('template', manifest.tag);
      undo.push(() => workDir.close());
      undo.push(() => endTemplate(vms));
      const consolePath = workDir.file('template.console');
      const adopt = adoptInto(vms, manifest, consolePath);
      const { port, pause_us } = await pool.run('copy', { source, running: true, frozen: true, cgroupProcs }, adopt);
      const first = { ...port, name: `the branch of ${source.name}` };
      const template = new Template(
        manifest,
        [new Lane(first, vms[0] as Sandbox)],
        { load_ms: 0, warm_ms: 0, copy_ms: 0 },
        undo,
      );
      await template.#widen(width, pool, first, adopt, vms);
      return { template, pauseUs: pause_us };
    } catch (error) {
      await undo.run();
      throw error;
    }
  }

  async #widen(width: number, pool: Pool, source: SourcePort, adopt: (e: TaskEvent) => void, vms: Sandbox[]) {
    const began = performance.now();
    while (this.lanes.length < width) {
      const { port } = await pool.run('copy', { source, running: false, frozen: true }, adopt);
      this.lanes.push(new Lane({ ...port, name: source.name }, vms.at(-1) as Sandbox));
    }
    this.times.copy_ms = performance.now() - began;
  }

  /** A copy that runs and that nobody talks to. The caller ends it. */
  async runningCopy(pool: Pool): Promise<Sandbox> {
    const vms: Sandbox[] = [];
    const [lane] = this.lanes;
    if (!lane) throw new ForkdError('INTERNAL', { reason: 'a template without a process' });
    const adopt = adoptInto(vms, this.manifest, lane.vm.birth.consolePath);
    try {
      await lane.take((source) => pool.run('copy', { source, running: false, frozen: false }, adopt));
    } catch (error) {
      await endTemplate(vms);
      throw error;
    }
    const copy = vms[0] as Sandbox;
    copy.returned();
    return copy;
  }

  /** Keeps some spares from now on. Nothing is forked before `spares.fill`. */
  keepSpares(options: Omit<SparesOptions, 'manifest' | 'lanes'>): Spares {
    const { manifest, lanes } = this;
    const spares = new Spares({ manifest, lanes, ...options });
    this.#undo.push(() => spares.close());
    this.spares = spares;
    return spares;
  }

  /** Ends its processes and removes its directory. Children live on. */
  async retire(): Promise<void> {
    await this.#undo.run();
  }
}

/** No worker starts it any more; one that still forks from it keeps its sockets open until it notices. */
const endTemplate = async (vms: Sandbox[]): Promise<void> => {
  for (const vm of vms) vm.returned();
  await end(vms);
};

const adoptInto =
  (vms: Sandbox[], { tag, isolation }: SnapshotManifest, consolePath: string) =>
  (event: TaskEvent) => {
    if (event.type !== 'spawned') return;
    vms.push(
      new Sandbox(
        { id: `template of ${tag}`, index: 0, tag, hostname: '', isolation, consolePath },
        event.vmm as StartedVmm,
      ),
    );
  };
