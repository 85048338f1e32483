/** Walks a plan: work directory, limits, then one batch of children for each worker. Whatever fails, everything before it is undone in reverse. */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { type ErrorData, ForkdError } from '../../contract/errors.js';
import type { EvalReply } from '../../contract/guest.js';
import { limits } from '../../contract/limits.js';
import type { RestoreChild, TaskEvent, TaskOutput } from '../../contract/task.js';
import { createCgroup, removeCgroup } from '../host/cgroup.js';
import { WorkDir } from '../host/workdir.js';
import type { LoadedSnapshot } from '../memory/loaded.js';
import type { Pool } from '../pool.js';
import { Sandbox } from '../sandbox/sandbox.js';
import { Undo } from '../undo.js';
import { VmmFd, type VmmDriver } from '../vmm/driver.js';
import type { ForkRequest, Plan, PlannedChild } from './plan.js';

export interface FanOut {
  workDir: WorkDir;
  sandboxes: Sandbox[];
  failures: { index: number; error: ErrorData }[];
  firstResults: Map<number, EvalReply>;
}

export interface RunContext {
  pool: Pool;
  driver: VmmDriver;
  snapshot: LoadedSnapshot;
  signal?: AbortSignal;
  onReady?: (ready: number, failed: number) => void;
  onEnd?: (sandbox: Sandbox) => void;
}

/** Entropy a child is given, bytes: the size of the kernel generator's pool (BLAKE2s, 256 bits), and as much again for the rest. */
const ENTROPY_BYTES = 64;

/**
 * Children that failed are in `failures` and already gone; the others are ready. Throws CANCELLED, or the error that
 * kept any child from being started; then nothing is left.
 */
export const runFork = async (plan: Plan, request: ForkRequest, context: RunContext): Promise<FanOut> => {
  const { pool, snapshot, signal } = context;
  const undo = new Undo();
  const cancel = new Int32Array(new SharedArrayBuffer(4));
  const fanOut: FanOut = { workDir: WorkDir.create('fork', plan.tag), sandboxes: [], failures: [], firstResults: new Map() };
  undo.push(() => fanOut.workDir.close());
  const born = new Map<number, Sandbox>();
  const onAbort = () => {
    Atomics.store(cancel, 0, 1);
    for (const sandbox of born.values()) sandbox.kill();
  };

  try {
    const cgroups = new Map<number, string>();
    for (const child of plan.children) {
      if (plan.memoryLimitMib === undefined) break;
      const dir = createCgroup(child.id, plan.memoryLimitMib);
      cgroups.set(child.index, dir);
      undo.push(() => removeCgroup(dir));
    }
    undo.push(() => end(born.values()));
    signal?.throwIfAborted();
    signal?.addEventListener('abort', onAbort);

    const byIndex = new Map(plan.children.map((child) => [child.index, child]));
    const onEvent = (event: TaskEvent) => {
      if (event.type === 'spawned') {
        const child = byIndex.get(event.vmm.index);
        if (!child) return;
        const sandbox = new Sandbox(birth(child, plan, fanOut.workDir), event.vmm, (ended) => {
          const dir = cgroups.get(child.index);
          if (dir) removeCgroup(dir);
          context.onEnd?.(ended);
        });
        born.set(child.index, sandbox);
        if (signal?.aborted) sandbox.kill();
      } else if (event.type === 'ready') {
        born.get(event.index)?.ready(event.receipt, event.times);
        if (event.firstResult) fanOut.firstResults.set(event.index, event.firstResult);
        context.onReady?.([...born.values()].filter((s) => s.state === 'ready').length, fanOut.failures.length);
      }
    };

    const tasks = plan.batches.map((batch) =>
      pool.run(
        'restore',
        {
          children: batch.map((i) => restoreChild(plan.children[i] as PlannedChild, request, context, fanOut.workDir, cgroups)),
          stateFd: snapshot.stateFd,
          stateTarget: VmmFd.state,
          answerMs: limits.firstAnswerSecs * 1000,
          cancel,
          ...(request.firstEval === undefined ? {} : { firstEval: request.firstEval }),
        },
        onEvent,
      ),
    );
    const outcomes = await Promise.allSettled(tasks);
    signal?.throwIfAborted();
    fanOut.failures = collectFailures(outcomes, plan, born);
    for (const failure of fanOut.failures) {
      const dead = born.get(failure.index);
      born.delete(failure.index);
      if (dead) await end([dead]);
    }
    fanOut.sandboxes = [...born.values()].sort((a, b) => a.birth.index - b.birth.index);
    const [first] = fanOut.failures;
    if (fanOut.sandboxes.length === 0 && first) throw ForkdError.fromData(first.error);
    undo.clear();
    return fanOut;
  } catch (error) {
    Atomics.store(cancel, 0, 1);
    await undo.run();
    throw signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
};

/** Why each child that is not ready is not: what its worker said, what ended the worker, or what ended the child. */
const collectFailures = (outcomes: PromiseSettledResult<TaskOutput<'restore'>>[], plan: Plan, born: Map<number, Sandbox>): FanOut['failures'] =>
  outcomes.flatMap((outcome, w) => {
    const told = new Map(outcome.status === 'fulfilled' ? outcome.value.failures.map((f) => [f.index, f.error]) : []);
    return (plan.batches[w] ?? [])
      .map((i) => (plan.children[i] as PlannedChild).index)
      .filter((index) => born.get(index)?.state !== 'ready')
      .map((index) => {
        const error = told.get(index) ?? (outcome.status === 'rejected' ? ForkdError.from(outcome.reason).toData() : undefined);
        return { index, error: error ?? (born.get(index)?.death() ?? new ForkdError('CANCELLED')).toData() };
      });
  });

/** Ends children, waits until they are reaped, and closes what was theirs. */
export const end = async (sandboxes: Iterable<Sandbox>): Promise<void> => {
  const all = [...sandboxes];
  // A pidfd watch does not keep the process alive; this does until the last one is reaped.
  const hold = setInterval(() => undefined, 60_000);
  for (const sandbox of all) sandbox.kill();
  await Promise.all(all.map((sandbox) => sandbox.ended));
  clearInterval(hold);
  for (const sandbox of all) sandbox.release();
};

const consoleOf = (workDir: WorkDir, index: number): string => workDir.file(`child-${index}.console`);

const birth = (child: PlannedChild, plan: Plan, workDir: WorkDir) => ({
  id: child.id,
  index: child.index,
  tag: plan.tag,
  hostname: child.hostname,
  isolation: plan.isolation,
  consolePath: consoleOf(workDir, child.index),
  ...(child.netns ? { netns: child.netns } : {}),
  ...(plan.memoryLimitMib === undefined ? {} : { memoryLimitMib: plan.memoryLimitMib }),
});

const restoreChild = (
  child: PlannedChild,
  request: ForkRequest,
  { driver, snapshot }: RunContext,
  workDir: WorkDir,
  cgroups: Map<number, string>,
): RestoreChild => {
  const cgroup = cgroups.get(child.index);
  return {
    index: child.index,
    vmm: driver.restore(snapshot.hardware, {
      name: `child ${child.index}`,
      consolePath: consoleOf(workDir, child.index),
      memfd: snapshot.memory.memfd,
      ...(child.netns ? { netnsPath: join('/var/run/netns', child.netns) } : {}),
      ...(cgroup ? { cgroupProcs: [join(cgroup, 'cgroup.procs')] } : {}),
    }),
    identity: {
      action: 'fork',
      entropy: randomBytes(ENTROPY_BYTES).toString('base64'),
      hostname: child.hostname,
      machine_id: child.machineId,
      index: child.index,
      ...(request.env ? { env: request.env } : {}),
    },
  };
};
