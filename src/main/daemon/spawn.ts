/** Sandboxes for a request: all of them or none. */
import { ForkdError } from '../../contract/errors.js';
import { type LimitsBody, type LimitsChange, limitsOfBody, resourceProblem } from '../../contract/resources.js';
import type { ForkRequest } from '../planner/plan.js';
import type { Context } from './context.js';
import { type Entry, newEntry, type Wishes } from './registry.js';

/** Throws REQUEST_REFUSED. */
export const requireLimits = (change: LimitsChange): LimitsChange => {
  for (const [what, value] of Object.entries(change) as [keyof LimitsChange, number | null][]) {
    const problem = value === null ? undefined : resourceProblem(what, value);
    if (problem !== undefined) throw new ForkdError('REQUEST_REFUSED', { reason: problem });
  }
  return change;
};

/** As a request for a new one has them: null is none. Throws REQUEST_REFUSED. */
export const limitsOfRequest = (body: Partial<LimitsBody>) => {
  const { memoryMib, cpus, ioMibPerS, pids } = requireLimits(limitsOfBody(body));
  return {
    ...(memoryMib == null ? {} : { memoryLimitMib: memoryMib }),
    ...(cpus == null ? {} : { cpus }),
    ...(ioMibPerS == null ? {} : { ioMibPerS }),
    ...(pids == null ? {} : { pids }),
  };
};

/**
 * The client could not tell which of them it has. They outlive the daemon when this settles; they are not in the registry yet.
 * Throws CHILDREN_FAILED and what Engine.fork and Survivors.acknowledge throw.
 */
export const spawn = async (
  { engine, metrics, survivors }: Context,
  request: ForkRequest,
  wishes: Wishes,
  workspace?: string,
): Promise<Entry[]> => {
  const observe = metrics.spawn.startTimer();
  const { sandboxes, failures } = await engine.fork(request);
  const [first] = failures;
  if (first) {
    await engine.kill(sandboxes);
    const { n } = request;
    throw new ForkdError('CHILDREN_FAILED', { failed: failures.length, n, reason: first.error.message });
  }
  const entries = sandboxes.map((sandbox) => newEntry(sandbox, wishes));
  try {
    await engine.publish(sandboxes);
    await survivors.acknowledge(entries, workspace);
  } catch (error) {
    await engine.kill(sandboxes);
    await Promise.allSettled(entries.map((entry) => survivors.forget(entry)));
    throw error;
  }
  observe();
  for (const { times } of sandboxes)
    if (times) metrics.forkReady.observe((times.spawn_ms + times.load_ms + times.first_answer_ms) / 1000);
  return entries;
};
