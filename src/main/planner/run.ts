/** Walks a plan: work directory, limits, then one batch of children for each worker. Whatever fails, everything before it is undone in reverse. */
import { join } from 'node:path';
import { type ErrorData, ForkdError } from '../../contract/errors.js';
import type { EvalReply } from '../../contract/guest.js';
import { hasCard } from '../../contract/snapshot.js';
import { limits } from '../../contract/limits.js';
import { Cgroup } from '../host/cgroup/cgroup.js';
import type { Jail, JailWishes } from '../host/jail.js';
import { WorkDir } from '../host/workdir.js';
import type { ChildNetwork } from '../network/network.js';
import type { Networks } from '../network/networks.js';
import type { LoadedSnapshot } from '../memory/loaded.js';
import type { Pool } from '../pool.js';
import { end } from '../sandbox/end.js';
import type { Sandbox } from '../sandbox/sandbox.js';
import type { Lane } from '../template/lane.js';
import type { Spares } from '../template/spares.js';
import { shimPath, tetherPath } from '../../native/binding.js';
import { Undo } from '../undo.js';
import { VmmFd, type VmmDriver } from '../vmm/driver.js';
import { type Failure, Nursery } from './nursery.js';
import { deal, type ForkRequest, type Plan, type PlannedChild } from './plan.js';

export interface FanOut {
  workDir: WorkDir;
  sandboxes: Sandbox[];
  failures: Failure[];
  firstResults: Map<number, EvalReply>;
  /** Microseconds that the fork system call took, for each hot-forked child. */
  forkUs: number[];
}

/** Where children come from: the lanes of a template, or device state. `cold` is also what a template that died falls back to. */
export interface Origin {
  lanes?: Lane[];
  /** Children that were forked ahead are taken from here first. */
  spares?: Pick<Spares, 'take'>;
  cold?: { driver: VmmDriver; snapshot: LoadedSnapshot };
}

export interface RunContext {
  pool: Pool;
  networks: Networks;
  origin: Origin;
  /** What the cards of children without a network of their own are connected to: an open tap, or one by its name. */
  hostTap?: number | string;
  /** The children live as long as somebody holds their descriptors, not as long as this process. */
  tied?: boolean;
  /** For children that are restored cold: each is sent to a jail of its own, by the shim. */
  makeJail?: (wishes: JailWishes) => Jail;
  signal?: AbortSignal;
  onReady?: (ready: number) => void;
  onEnd?: (sandbox: Sandbox) => void;
  /** Told when children are restored cold after all. */
  onFallback?: (reason: string) => void;
}

interface Batch {
  children: PlannedChild[];
  outcome: Promise<{ failures: Failure[]; fork_us?: number[] }>;
}

/**
 * Children that failed are in `failures` and already gone; the others are ready. Throws CANCELLED, or the error that
 * kept every child from being started; then nothing is left.
 */
export const runFork = async (plan: Plan, request: ForkRequest, context: RunContext): Promise<FanOut> => {
  const { origin, signal, onReady, onEnd } = context;
  const undo = new Undo();
  const cancel = new Int32Array(new SharedArrayBuffer(4));
  let nursery: Nursery | undefined;
  const onAbort = () => {
    Atomics.store(cancel, 0, 1);
    nursery?.killAll();
  };
  try {
    signal?.throwIfAborted();
    const workDir = WorkDir.create('fork', plan.tag);
    undo.push(() => workDir.close());
    const spares = origin.spares?.take(plan.children.length) ?? [];
    undo.push(() => end(spares));
    const rest = plan.children.slice(spares.length);
    const cgroups = Object.keys(plan.limits).length === 0 ? new Map() : makeCgroups(plan, rest, undo);
    const networks = await takeNetworks(plan, context.networks, undo);
    signal?.throwIfAborted();
    const children = new Nursery(plan, workDir, cgroups, networks, origin.lanes?.[0]?.port, {
      ...(signal ? { signal } : {}),
      ...(onReady ? { onReady } : {}),
      ...(onEnd ? { onEnd } : {}),
    });
    nursery = children;
    undo.push(() => children.endAll());
    signal?.addEventListener('abort', onAbort);

    const job = { request, context, nursery: children, cancel };
    undo.push(() => children.returnAll());
    const forkUs: number[] = [];
    spares.forEach((spare, i) => {
      children.adoptSpare(plan.children[i] as PlannedChild, spare);
    });
    let failures = await settleBatches(
      [...spareBatches(plan.children, spares, job), ...freshBatches(rest, job)],
      children,
      forkUs,
    );
    signal?.throwIfAborted();
    failures = await replaceSpares(failures, plan.children.slice(0, spares.length), job, forkUs);
    signal?.throwIfAborted();
    failures = await retryCold(failures, plan, job);
    children.returnAll();
    signal?.throwIfAborted();

    const sandboxes = await children.settle(failures);
    for (const { birth, vmm } of sandboxes) birth.network?.handOver(vmm.pid);
    for (const { index } of failures) networks.get(index)?.end();
    const [first] = failures;
    if (sandboxes.length === 0 && first) throw ForkdError.fromData(first.error);
    undo.clear();
    return { workDir, sandboxes, failures, firstResults: children.firstResults, forkUs };
  } catch (error) {
    Atomics.store(cancel, 0, 1);
    await undo.run();
    throw signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
};

interface Job {
  request: ForkRequest;
  context: RunContext;
  nursery: Nursery;
  cancel: Int32Array;
}

/** With limits from birth on; the others join when they are ready (sandbox/join.ts). */
const makeCgroups = (plan: Plan, children: PlannedChild[], undo: Undo): Map<number, Cgroup> => {
  const cgroups = new Map<number, Cgroup>();
  for (const child of children) {
    const cgroup = Cgroup.create(child.id, plan.limits, plan.snapshot.rootfs);
    if (!cgroup) break;
    cgroups.set(child.index, cgroup);
    undo.push(() => cgroup.remove());
  }
  return cgroups;
};

const takeNetworks = async (
  { network, children }: Plan,
  networks: Networks,
  undo: Undo,
): Promise<Map<number, ChildNetwork>> => {
  if (!network) return new Map();
  const taken = await networks.take(children.length, network);
  undo.push(() => {
    for (const one of taken) one.end();
  });
  children.forEach(({ netns }, i) => {
    if (netns !== undefined) taken[i]?.nameIt(netns);
  });
  return new Map(taken.map((one, i) => [children[i]?.index ?? 0, one]));
};

const common = ({ request, cancel }: Job) => ({
  answerMs: limits.firstAnswerSecs * 1000,
  cancel,
  ...(request.firstEval === undefined ? {} : { firstEval: request.firstEval }),
});

const freshBatches = (children: PlannedChild[], job: Job): Batch[] => {
  const { lanes } = job.context.origin;
  if (children.length === 0) return [];
  return lanes ? hotBatches(children, lanes, job) : coldBatches(children, job);
};

/** The first children are those that were forked ahead: they only need their identity. Any worker and any processor will do. */
const spareBatches = (children: PlannedChild[], spares: Sandbox[], job: Job): Batch[] => {
  const { nursery, request, context } = job;
  return deal(spares.length, context.pool.width).map((batch) => {
    const mine = batch.map((i) => children[i] as PlannedChild);
    const asleep = batch.map((i) => {
      const child = children[i] as PlannedChild;
      const { birth, vmm } = spares[i] as Sandbox;
      const name = `child ${child.index}`;
      const identity = nursery.identity(child, request.env);
      return { index: child.index, name, consolePath: birth.consolePath, agentFd: vmm.agentFd, identity };
    });
    return {
      children: mine,
      outcome: context.pool.run('awaken', { children: asleep, ...common(job) }, nursery.onEvent),
    };
  });
};

/** A spare that has died in its sleep, or does not answer, is no child's fault: another is forked in its place. */
const replaceSpares = async (
  failures: Failure[],
  fromSpares: PlannedChild[],
  job: Job,
  forkUs: number[],
): Promise<Failure[]> => {
  const failed = new Set(failures.map(({ index }) => index));
  const again = fromSpares.filter(({ index }) => failed.has(index));
  if (again.length === 0) return failures;
  const indexes = new Set(again.map(({ index }) => index));
  await job.nursery.giveUp([...indexes]);
  const others = failures.filter(({ index }) => !indexes.has(index));
  return [...others, ...(await settleBatches(freshBatches(again, job), job.nursery, forkUs))];
};

const hotBatches = (children: PlannedChild[], lanes: Lane[], job: Job): Batch[] => {
  const { nursery, request, context } = job;
  return deal(children.length, lanes.length).map((batch, w) => {
    const mine = batch.map((i) => children[i] as PlannedChild);
    const hot = mine.map((child) => ({
      index: child.index,
      name: `child ${child.index}`,
      consolePath: nursery.consoleOf(child.index),
      cgroupProcs: nursery.cgroupProcs(child.index),
      ...nursery.tap(child.index),
      identity: nursery.identity(child, request.env),
    }));
    const outcome = (lanes[w] as Lane).take((port) =>
      context.pool.run(
        'hotfork',
        { port, children: hot, tied: context.tied ?? false, ...common(job) },
        nursery.onEvent,
      ),
    );
    return { children: mine, outcome };
  });
};

const coldBatches = (children: PlannedChild[], job: Job): Batch[] => {
  const { nursery, request, context } = job;
  const { cold } = context.origin;
  if (!cold) throw new ForkdError('INTERNAL', { reason: 'nothing to restore from' });
  return deal(children.length, context.pool.width).map((batch) => {
    const mine = batch.map((i) => children[i] as PlannedChild);
    const restores = mine.map((child) => {
      const { hardware, memory } = cold.snapshot;
      const place = placeOf(child, nursery, context);
      const options = {
        name: `child ${child.index}`,
        consolePath: nursery.consoleOf(child.index),
        memfd: memory.memfd,
        cgroupProcs: nursery.cgroupProcs(child.index),
        ...place,
      };
      // A tap that is open works from anywhere; one that is to be opened has to be there.
      const ownNetwork = place.netnsPath === undefined && typeof place.tap !== 'string';
      // Nobody has seen yet what QEMU calls under KVM.
      const jail = context.makeJail?.({ ownNetwork, anyCall: hardware.isolation === 'kvm' });
      return {
        index: child.index,
        vmm: {
          ...cold.driver.restore(hardware, options, jail && shimPath),
          ...(jail ? { confinement: jail.confinement } : {}),
          ...(context.tied ? { tether: { library: tetherPath, target: VmmFd.tether } } : {}),
        },
        ...(jail ? { jail: { ...jail.terms, controlTarget: VmmFd.control } } : {}),
        identity: nursery.identity(child, request.env),
      };
    });
    const input = { children: restores, stateFd: cold.snapshot.stateFd, stateTarget: VmmFd.state, ...common(job) };
    return { children: mine, outcome: context.pool.run('restore', input, nursery.onEvent) };
  });
};

/** What a child that is restored cold is connected to: its own network, what its namespace has, an interface of the host, or nothing. */
const placeOf = (
  { index, netns }: PlannedChild,
  { plan, networks, tap }: Nursery,
  { hostTap }: RunContext,
): { netnsPath?: string; tap?: number | string } => {
  if (plan.network && hasCard(plan.snapshot)) return tap(index);
  if (plan.network || networks.size > 0) return {};
  const netnsPath = netns === undefined ? {} : { netnsPath: join('/var/run/netns', netns) };
  return { ...netnsPath, ...(hostTap === undefined ? {} : { tap: hostTap }) };
};

/** Waits for every batch. A worker that died fails those of its children that were not ready; they are ended, known or not. */
const settleBatches = async (batches: Batch[], nursery: Nursery, forkUs: number[] = []): Promise<Failure[]> => {
  const outcomes = await Promise.allSettled(batches.map((batch) => batch.outcome));
  if (outcomes.some(({ status }) => status === 'rejected')) await nursery.endStrays();
  return outcomes.flatMap((outcome, b) => {
    const told = new Map<number, ErrorData>();
    if (outcome.status === 'fulfilled') {
      for (const { index, error } of outcome.value.failures) told.set(index, error);
      for (const us of outcome.value.fork_us ?? []) forkUs.push(us);
    }
    const lost = outcome.status === 'rejected' ? ForkdError.from(outcome.reason).toData() : undefined;
    return (batches[b]?.children ?? [])
      .filter(({ index }) => !nursery.isReady(index))
      .map(({ index }) => ({ index, error: nursery.reason(index, told.get(index) ?? lost) }));
  });
};

/** Children that a template could not make, because it or its worker died or it refused, are restored cold: the caller gets what was asked for. */
const retryCold = async (failures: Failure[], plan: Plan, job: Job): Promise<Failure[]> => {
  const { origin, onFallback } = job.context;
  if (!origin.lanes || !origin.cold) return failures;
  const unborn = failures.filter(
    ({ index, error }) =>
      !job.nursery.isBorn(index) && (error.code === 'WORKER_DIED' || error.code.startsWith('HOTFORK_')),
  );
  const [first] = unborn;
  if (!first) return failures;
  // No fault server knows of them.
  await origin.cold.snapshot.memory.complete();
  onFallback?.(`${unborn.length} children are restored cold: ${first.error.message}`);
  const again = new Set(unborn.map(({ index }) => index));
  const retried = await settleBatches(
    coldBatches(
      plan.children.filter(({ index }) => again.has(index)),
      job,
    ),
    job.nursery,
  );
  return [...failures.filter(({ index }) => !again.has(index)), ...retried];
};
