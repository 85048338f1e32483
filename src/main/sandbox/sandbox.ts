/**
 * One live child and everything that is owned for it.
 *
 *     starting --ready--> ready --(its process ends)--> dead
 *        \-----------(its process ends)----------------^
 *
 * A spare is ready under a name that nobody is told, and starts once more, as somebody else, when it is wanted (`becomes`).
 */
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { ForkdError } from '../../contract/errors.js';
import {
  AGENT_TCP_PORT,
  type ForkReceipt,
  type GuestReply,
  type GuestRequest,
  type PlainReply,
  type StreamRequest,
  STREAMS_GENERATION,
} from '../../contract/guest.js';
import { type Held, type HeldKind, heldKinds } from '../../contract/held.js';
import type { TemplatePort } from '../../contract/hotfork.js';
import { type LimitsBody, type LimitsChange, limitsBody, type ResourceUsage } from '../../contract/resources.js';
import { hasCard, type Isolation, type SnapshotManifest } from '../../contract/snapshot.js';
import type { ChildTimes, SourcePort, StartedVmm } from '../../contract/task.js';
import { type ExitStatus, native } from '../../native/binding.js';
import type { NetworkInfo } from '../../contract/network.js';
import type { ChildNetwork } from '../network/network.js';
import { AgentClient, type Read } from '../agent/client.js';
import type { AgentStream } from '../agent/stream.js';
import type { Cgroup } from '../host/cgroup/cgroup.js';
import { takeLoss } from '../memory/lazy.js';
import { Warden } from './warden.js';
import { isFull, lastLines, panicOf } from '../../workers/vmm/obituary.js';

export interface SandboxInfo {
  id: string;
  index: number;
  snapshot_tag: string;
  hostname: string;
  isolation: Isolation;
  pid: number;
  netns: string | null;
  /** Where the host reaches it, and what it was not let reach; null without a network. */
  network: NetworkInfo | null;
  memory_limit_mib: number | null;
  limits: LimitsBody;
  /** What it did to its connection and its console that no guest does, and limits that it met. */
  held: Held[];
  created_at_unix: number;
  receipt: ForkReceipt | null;
}

export interface Birth {
  id: string;
  index: number;
  tag: string;
  hostname: string;
  isolation: Isolation;
  consolePath: string;
  netns?: string;
  /** Where its limits are set. */
  cgroup?: Cgroup;
  /** Its own, when it has one. */
  network?: ChildNetwork;
  /** The snapshot that it comes from. */
  snapshot?: SnapshotManifest;
  /** Descriptor numbers inside it, when it was hot-forked: those of its template. */
  numbers?: Omit<TemplatePort, 'controlFd'>;
}

/** A directory of 100,000 files, in a guest under emulation on a busy host. */
const ASK_MS = 60_000;

/** Time between a VM's last word and its end: QEMU closes its sockets while it exits. */
const DEATH_WAIT_MS = 2000;

export class Sandbox {
  state: 'starting' | 'ready' | 'dead' = 'starting';
  receipt: ForkReceipt | undefined;
  times: ChildTimes | undefined;
  /** Settles when the process has ended and has been reaped. */
  readonly ended: Promise<ExitStatus>;
  /** Seconds since the epoch: when it was asked for. */
  createdAt = now();
  /** Unix socket at which it is offered, once it is published. */
  socket = '';
  #birth: Birth;
  #onEnd: ((sandbox: Sandbox) => void) | undefined;
  #agent: AgentClient | undefined;
  /** Workers that use the sockets; at first the one that starts the VM. */
  #borrowers = 1;
  #lastTurn: Promise<unknown> = Promise.resolve();
  #closed = false;
  #killed = false;
  #joined = Promise.resolve();
  /** Read when it ends: its console goes with the work directory. */
  #lastWords: { panic?: string | undefined; console: string } = { console: '' };
  #status: ExitStatus | undefined;
  #loss: ForkdError | undefined;
  readonly #held = new Map<HeldKind, number>();
  /** The limit that it was ended for. */
  #exceeded: string | undefined;
  #hasLeftGroup = false;
  /** At its birth there is nothing to see, and the files of its group are locked while it joins. */
  #lookedAt = performance.now();
  readonly #warden: Warden | undefined;
  /** The first process of its pid namespace was ended, and it with that. */
  #orphaned = false;

  constructor(
    birth: Birth,
    readonly vmm: StartedVmm,
    onEnd?: (sandbox: Sandbox) => void,
  ) {
    this.#birth = birth;
    this.#onEnd = onEnd;
    this.#warden = Warden.of(vmm);
    this.ended = new Promise((resolve) => {
      if (vmm.pidfd === NONE) return resolve(this.#bury());
      native.pidfdWatch(vmm.pidfd, (status) => {
        this.state = 'dead';
        this.#status = status;
        native.fdClose(vmm.pidfd);
        this.loss();
        this.held();
        if (!this.#killed) this.#lastWords = lastWordsOf(this.#birth.consolePath);
        this.#exceeded = this.#leaveGroup();
        this.#orphaned = !this.#killed && status.code === null && this.#warden?.isBroken === true;
        this.#warden?.leave();
        this.#closeWhenUnused();
        this.#onEnd?.(this);
        resolve(status);
      });
    });
  }

  /** One that ended before this process could know it: nothing is owned for it. */
  static gone(birth: Birth, pid: number): Sandbox {
    return new Sandbox(birth, { index: birth.index, pid, pidfd: NONE, qmpFd: NONE, agentFd: NONE });
  }

  #bury(): ExitStatus {
    this.state = 'dead';
    this.#closed = true;
    return { code: null, signal: null };
  }

  /** The group is empty now. What it was ended for is read first. */
  #leaveGroup(): string | undefined {
    const { cgroup } = this.#birth;
    const exceeded = this.#killed ? undefined : cgroup?.exceeded();
    if (exceeded?.startsWith('memory')) this.#hold('memory-limit');
    this.#hasLeftGroup = true;
    try {
      cgroup?.remove();
    } catch {
      // Somebody else has put a process there; `forkd cleanup` tells of it.
    }
    return exceeded;
  }

  /** Settles when it is in its groups, if it is to have some. */
  get joined(): Promise<void> {
    return this.#joined;
  }

  /** It is on its way into a group that is made for it. */
  joins(cgroup: Cgroup, done: Promise<void>): void {
    this.#birth = { ...this.#birth, cgroup };
    this.#joined = done.then(() => {
      // It left before it was there.
      if (this.state === 'dead') this.#leaveGroup();
    });
  }

  /** Changes what it may use. Throws LIMITS_IMPOSSIBLE, CGROUP_FAILED, VMM_DIED. */
  async limit(change: LimitsChange): Promise<void> {
    await this.#joined;
    if (this.state === 'dead') throw this.death();
    if (!this.#birth.cgroup) throw new ForkdError('LIMITS_IMPOSSIBLE', { id: this.id });
    this.#birth.cgroup.changeRunning(this.vmm.pid, change);
  }

  /** Throws VMM_DIED, LIMITS_IMPOSSIBLE. */
  async usage(): Promise<ResourceUsage> {
    await this.#joined;
    if (this.state === 'dead') throw this.death();
    if (!this.#birth.cgroup) throw new ForkdError('LIMITS_IMPOSSIBLE', { id: this.id });
    return this.#birth.cgroup.usage();
  }

  get birth(): Birth {
    return this.#birth;
  }

  get id(): string {
    return this.#birth.id;
  }

  /** Where its agent's protocol is spoken; once it is published, where it has no network. */
  get address(): string {
    const { network, snapshot } = this.#birth;
    return network && snapshot && hasCard(snapshot)
      ? `${network.address}:${AGENT_TCP_PORT}`
      : `unix:${this.socket}#${this.id}`;
  }

  /** See agent/send-mark.ts. */
  get markPath(): string {
    return this.#birth.consolePath.replace(/\.console$/, '.sending');
  }

  /** How to copy it while it runs, or undefined when it has no shim. */
  get source(): SourcePort | undefined {
    const { controlFd } = this.vmm;
    const { numbers, index } = this.birth;
    return controlFd === undefined || !numbers ? undefined : { ...numbers, controlFd, name: `child ${index}` };
  }

  /** `times` are not known of one that was taken over. */
  ready(receipt: ForkReceipt, times?: ChildTimes): void {
    if (this.state !== 'starting') return;
    this.state = 'ready';
    this.receipt = receipt;
    this.times = times;
  }

  /** A spare gets the name of the child that was asked for. Its own console stays, and its group. It is starting again, lent to a worker until `returned`. */
  becomes(birth: Omit<Birth, 'consolePath' | 'cgroup'>, onEnd?: (sandbox: Sandbox) => void): void {
    const { consolePath, cgroup } = this.#birth;
    this.#birth = { ...birth, consolePath, ...(cgroup ? { cgroup } : {}) };
    this.#onEnd = onEnd;
    this.#borrowers++;
    this.createdAt = now();
    this.receipt = undefined;
    this.times = undefined;
    if (this.state === 'ready') this.state = 'starting';
  }

  /** The agent, driven from the main thread. From the first use on, no worker may be given `vmm.agentFd`. */
  get agent(): AgentClient {
    this.#agent ??= new AgentClient(
      this.vmm.agentFd,
      this.id,
      this.markPath,
      (kind) => this.#hold(kind),
      (failure) => this.explain(failure),
    );
    return this.#agent;
  }

  /**
   * Opens a stream: a program whose output is heard while it runs, a connection to a service inside, a file or a directory on its
   * way. Throws GUEST_OUTDATED, VMM_DIED; whether it could be opened, `opened` tells.
   */
  stream(request: StreamRequest): AgentStream {
    this.requireGeneration(STREAMS_GENERATION, request.action);
    return this.agent.open(request);
  }

  /** Asks about files, or about programs in the background. Throws GUEST_OUTDATED, AGENT_ERROR and what `call` throws. */
  async ask<T extends PlainReply>(request: GuestRequest, timeoutMs = ASK_MS): Promise<T> {
    this.requireGeneration(STREAMS_GENERATION, request.action);
    try {
      return await this.agent.ask<T>(request, timeoutMs);
    } catch (error) {
      throw await this.explain(ForkdError.from(error));
    }
  }

  /** Throws GUEST_OUTDATED when its agent is older, VMM_DIED when it has ended. */
  requireGeneration(generation: number, action: string): void {
    if (this.state === 'dead') throw this.death();
    if (this.receipt && this.receipt.generation < generation)
      throw new ForkdError('GUEST_OUTDATED', { target: this.id, action });
  }

  get isAttached(): boolean {
    return this.#agent !== undefined;
  }

  /** Throws VMM_DIED when the VM has ended, else what the agent client throws. */
  async call<T = GuestReply>(request: GuestRequest, timeoutMs: number, read?: Read<T>): Promise<T> {
    if (this.state === 'dead') throw this.death();
    try {
      return await this.agent.call(request, timeoutMs, read);
    } catch (error) {
      throw await this.explain(ForkdError.from(error));
    }
  }

  /** A VM that broke its connection has ended, or is about to: then its death is told, and not the broken connection. */
  async explain(failure: ForkdError): Promise<ForkdError> {
    if (failure.code !== 'AGENT_UNREACHABLE') return failure;
    // A timer, because a pidfd watch alone does not keep the process alive.
    await Promise.race([this.ended, sleep(DEATH_WAIT_MS)]);
    return this.state === 'dead' ? this.death() : failure;
  }

  /** MEMORY_LOST when it was ended because a part of its memory could not be loaded. Known as soon as the process begins to end. */
  loss(): ForkdError | undefined {
    const reason = takeLoss(this.vmm);
    if (reason !== undefined) this.#loss = new ForkdError('MEMORY_LOST', { vm: this.#name, reason });
    return this.#loss;
  }

  get #name(): string {
    return this.birth.index === 0 ? this.id : `child ${this.birth.index}`;
  }

  #hold(kind: HeldKind): void {
    this.#held.set(kind, (this.#held.get(kind) ?? 0) + 1);
  }

  /** What it was held in, as of so long ago at most, milliseconds. */
  held(maxAgeMs = 0): Held[] {
    if (performance.now() - this.#lookedAt >= maxAgeMs) this.#look();
    return [...this.#held].map(([kind, count]) => ({ kind, what: heldKinds[kind], count }));
  }

  #look(): void {
    this.#lookedAt = performance.now();
    if (!this.#held.has('console-full') && isFull(this.#birth.consolePath)) this.#hold('console-full');
    if (this.#hasLeftGroup) return;
    for (const [kind, count] of this.#birth.cgroup?.met() ?? []) this.#held.set(kind, count);
  }

  /** Why it ended, with the console's last lines. */
  death(): ForkdError {
    if (this.#loss) return this.#loss;
    const vm = `child ${this.birth.index}`;
    const { panic, console } = this.#lastWords;
    if (this.#exceeded !== undefined) return new ForkdError('LIMIT_EXCEEDED', { vm, limit: this.#exceeded });
    if (this.#orphaned) return new ForkdError('JAIL_ENDED', { vm });
    if (this.#status?.signal === constants.signals.SIGSYS) return new ForkdError('JAIL_BROKEN', { vm, console });
    if (panic !== undefined) return new ForkdError('GUEST_PANIC', { vm, panic });
    return new ForkdError('VMM_DIED', { vm, how: describe(this.#status), console });
  }

  /** Ends the process; `ended` tells when it has. */
  kill(): void {
    if (this.state === 'dead') return;
    this.#killed = true;
    native.pidfdSignal(this.vmm.pidfd, constants.signals.SIGKILL);
  }

  /** A worker uses the sockets while `use` runs: they stay open until it is done, also when the VM ends meanwhile. */
  async lend<T>(use: () => Promise<T>): Promise<T> {
    this.#borrowers++;
    try {
      return await use();
    } finally {
      this.returned();
    }
  }

  /** Runs `use` after everyone who came before: its control socket holds one conversation at a time. */
  inTurn<T>(use: () => Promise<T>): Promise<T> {
    const turn = this.#lastTurn.then(use);
    this.#lastTurn = turn.catch(() => undefined);
    return turn;
  }

  /** The worker that started it has ended its task. */
  returned(): void {
    this.#borrowers--;
    this.#closeWhenUnused();
  }

  #closeWhenUnused(): void {
    if (this.state !== 'dead' || this.#borrowers > 0 || this.#closed) return;
    this.#closed = true;
    if (this.#agent) this.#agent.close();
    else native.fdClose(this.vmm.agentFd);
    native.fdClose(this.vmm.qmpFd);
    for (const fd of [this.vmm.controlFd, this.vmm.tetherFd]) if (fd !== undefined) native.fdClose(fd);
  }

  info(): SandboxInfo {
    const { id, index, tag, hostname, isolation, netns, network, cgroup } = this.birth;
    return {
      id,
      index,
      snapshot_tag: tag,
      hostname,
      isolation,
      pid: this.vmm.pid,
      netns: netns ?? null,
      network: network?.info() ?? null,
      memory_limit_mib: cgroup?.limits.memoryMib ?? null,
      limits: limitsBody(cgroup?.limits),
      held: this.held(HELD_AGE_MS),
      created_at_unix: this.createdAt,
      receipt: this.receipt ?? null,
    };
  }
}

/** Of what it was held in, where it is told of beside all else: the kernel's files are not read for each list. */
export const HELD_AGE_MS = 500;

/** In place of a descriptor. */
const NONE = -1;

/** Seconds since the epoch. */
const now = (): number => Math.floor(Date.now() / 1000);

const lastWordsOf = (path: string) => ({ panic: panicOf(path), console: lastLines(path) });

/** `signal SIGKILL`, `exit code 1`. */
export const describe = (status: ExitStatus | undefined): string => {
  if (status?.signal != null) {
    const name = Object.entries(constants.signals).find(([, number]) => number === status.signal)?.[0];
    return `signal ${name ?? status.signal}`;
  }
  return status?.code != null ? `exit code ${status.code}` : 'it is gone';
};
