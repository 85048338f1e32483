/** The children of one fan-out, from planned to ready: turns what workers tell into sandboxes that the main thread owns. */
import { randomBytes } from 'node:crypto';
import { type ErrorData, ForkdError } from '../../contract/errors.js';
import type { EvalReply, ForkRequest as IdentityRequest } from '../../contract/guest.js';
import type { TemplatePort } from '../../contract/hotfork.js';
import type { StartedVmm, TaskEvent } from '../../contract/task.js';
import type { Cgroup } from '../host/cgroup/cgroup.js';
import { ticksNow } from '../host/process.js';
import type { ChildNetwork } from '../network/network.js';
import type { WorkDir } from '../host/workdir.js';
import { end } from '../sandbox/end.js';
import { Sandbox } from '../sandbox/sandbox.js';
import { endStrays } from '../sandbox/strays.js';
import type { Plan, PlannedChild } from './plan.js';

export interface Failure {
  index: number;
  error: ErrorData;
}

/** Entropy a child is given, bytes: the kernel generator's pool holds 256 bits (BLAKE2s), and as much again for the rest. */
const ENTROPY_BYTES = 64;

export class Nursery {
  readonly firstResults = new Map<number, EvalReply>();
  readonly #born = new Map<number, Sandbox>();
  readonly #planned: Map<number, PlannedChild>;
  readonly #cgroups: Map<number, Cgroup>;
  readonly #began = ticksNow();
  #ready = 0;

  constructor(
    readonly plan: Plan,
    readonly workDir: WorkDir,
    cgroups: Map<number, Cgroup>,
    readonly networks: Map<number, ChildNetwork>,
    /** Descriptor numbers inside hot-forked children. */
    readonly numbers: Omit<TemplatePort, 'controlFd'> | undefined,
    readonly hooks: { signal?: AbortSignal; onReady?: (ready: number) => void; onEnd?: (sandbox: Sandbox) => void },
  ) {
    this.#planned = new Map(plan.children.map((child) => [child.index, child]));
    this.#cgroups = cgroups;
  }

  readonly onEvent = (event: TaskEvent): void => {
    if (event.type === 'spawned') this.#adopt(event.vmm);
    if (event.type !== 'ready') return;
    this.#born.get(event.index)?.ready(event.receipt, event.times);
    if (event.firstResult) this.firstResults.set(event.index, event.firstResult);
    this.hooks.onReady?.(++this.#ready);
  };

  #adopt(vmm: StartedVmm): void {
    const child = this.#planned.get(vmm.index);
    if (!child) return;
    const cgroup = this.#cgroups.get(child.index);
    const birth = { ...this.#birth(child), consolePath: this.consoleOf(child.index), ...(cgroup ? { cgroup } : {}) };
    this.#own(
      child,
      new Sandbox(birth, vmm, (ended) => {
        this.networks.get(child.index)?.end();
        this.hooks.onEnd?.(ended);
      }),
    );
  }

  /** A spare becomes this child. */
  adoptSpare(child: PlannedChild, spare: Sandbox): void {
    spare.becomes(this.#birth(child), this.hooks.onEnd);
    this.#own(child, spare);
  }

  #own(child: PlannedChild, sandbox: Sandbox): void {
    this.#born.set(child.index, sandbox);
    if (this.hooks.signal?.aborted) sandbox.kill();
  }

  #birth(child: PlannedChild) {
    const { tag, isolation, snapshot } = this.plan;
    return {
      id: child.id,
      index: child.index,
      tag,
      hostname: child.hostname,
      isolation,
      snapshot,
      ...(child.netns ? { netns: child.netns } : {}),
      ...this.#connection(child.index),
      ...(this.numbers ? { numbers: this.numbers } : {}),
    };
  }

  #connection(index: number): { network?: ChildNetwork } {
    const network = this.networks.get(index);
    return network ? { network } : {};
  }

  /** What its card is connected to. */
  readonly tap = (index: number): { tap?: number } => {
    const tap = this.networks.get(index)?.tap;
    return tap === undefined ? {} : { tap };
  };

  consoleOf(index: number): string {
    return this.workDir.file(`child-${index}.console`);
  }

  cgroupProcs(index: number): string[] {
    return this.#cgroups.get(index)?.procs ?? [];
  }

  /** What makes the child unique, made for it alone and used once. */
  identity(child: PlannedChild, env?: Record<string, string>): Omit<IdentityRequest, 'clock_ns'> {
    return {
      action: 'fork',
      entropy: randomBytes(ENTROPY_BYTES).toString('base64'),
      hostname: child.hostname,
      machine_id: child.machineId,
      index: child.index,
      ...(env ? { env } : {}),
    };
  }

  isReady(index: number): boolean {
    return this.#born.get(index)?.state === 'ready';
  }

  isBorn(index: number): boolean {
    return this.#born.has(index);
  }

  /** Why a child that is not ready is not. */
  reason(index: number, told: ErrorData | undefined): ErrorData {
    const sandbox = this.#born.get(index);
    const death = sandbox?.state === 'dead' ? sandbox.death().toData() : undefined;
    return (
      sandbox?.loss()?.toData() ??
      told ??
      death ??
      new ForkdError('INTERNAL', { reason: `child ${index} was never started` }).toData()
    );
  }

  /** Ends children that somebody else is to be born in place of. */
  async giveUp(indexes: number[]): Promise<void> {
    const given = indexes.flatMap((index) => this.#born.get(index) ?? []);
    for (const sandbox of given) sandbox.returned();
    await end(given);
    for (const index of indexes) this.#born.delete(index);
  }

  /** Ends the children that failed. Returns the others, in order. */
  async settle(failures: Failure[]): Promise<Sandbox[]> {
    const failed = failures.flatMap(({ index }) => this.#born.get(index) ?? []);
    await end(failed);
    for (const { index } of failures) this.#born.delete(index);
    return [...this.#born.values()].sort((a, b) => a.birth.index - b.birth.index);
  }

  /** Every worker of the fan-out has ended: the sockets are the sandboxes' own from now on. */
  returnAll(): void {
    for (const sandbox of this.#born.values()) sandbox.returned();
  }

  /** A worker died: ends what it had made and could not tell of any more. */
  async endStrays(): Promise<void> {
    const owned = new Set([...this.#born.values()].map(({ vmm }) => vmm.pid));
    await endStrays(this.workDir.path, owned, this.#began);
  }

  killAll(): void {
    for (const sandbox of this.#born.values()) sandbox.kill();
  }

  async endAll(): Promise<void> {
    await end(this.#born.values());
  }
}
