/** One call to each of many sandboxes, all at once. */
import { type ErrorData, ForkdError } from '../../contract/errors.js';
import type { EvalReply, ExecReply, GuestRequest } from '../../contract/guest.js';
import type { Pool } from '../pool.js';
import type { Sandbox } from './sandbox.js';

/** What came of one call to one child. */
export interface CallResult {
  index: number;
  id: string;
  ms: number;
  reply?: ExecReply | EvalReply;
  error?: ErrorData;
}

/** Time beyond the guest's own for a call to come back: a busy host schedules late. */
export const CALL_GRACE_MS = 15_000;

export interface Calls {
  requestFor: (sandbox: Sandbox) => GuestRequest;
  /** For each. */
  timeoutMs: number;
  /** Hears of each as it comes. */
  onResult?: ((result: CallResult) => void) | undefined;
}

type Settle = (sandbox: Sandbox, ms: number, outcome: Pick<CallResult, 'reply' | 'error'>) => void;

/** Fresh children are called by the worker pool; one whose socket the main thread has taken over already is called from there. */
export const callEach = async (
  pool: Pool,
  sandboxes: Sandbox[],
  { requestFor, timeoutMs, onResult }: Calls,
): Promise<CallResult[]> => {
  const results: CallResult[] = [];
  const settle: Settle = ({ id, birth }, ms, outcome) => {
    const result = { index: birth.index, id, ms, ...outcome };
    results.push(result);
    onResult?.(result);
  };
  const attached = sandboxes.filter((s) => s.isAttached).map((s) => callOne(s, requestFor(s), timeoutMs, settle));
  const fresh = sandboxes.filter((s) => !s.isAttached);
  const lanes = Array.from({ length: pool.width }, (_, w) => fresh.filter((_, i) => i % pool.width === w));
  const busy = lanes.filter((lane) => lane.length > 0);
  await Promise.all([...attached, ...busy.map((lane) => callLane(pool, lane, requestFor, timeoutMs, settle))]);
  return results.sort((a, b) => a.index - b.index);
};

const callLane = async (
  pool: Pool,
  lane: Sandbox[],
  requestFor: (s: Sandbox) => GuestRequest,
  timeoutMs: number,
  settle: Settle,
): Promise<void> => {
  const explained: Promise<void>[] = [];
  // Numbered by their place: a source and its branches, or children of two forks, may have the same index.
  const calls = lane.map((s, place) => ({
    index: place,
    name: `child ${s.birth.index}`,
    agentFd: s.vmm.agentFd,
    request: requestFor(s),
    timeoutMs,
  }));
  const running = pool.run('call', { calls }, (event) => {
    const sandbox = 'index' in event ? lane[event.index] : undefined;
    if (!sandbox) return;
    if (event.type === 'reply') settle(sandbox, event.ms, { reply: event.reply });
    if (event.type !== 'failed') return;
    const told = sandbox.explain(ForkdError.fromData(event.error));
    explained.push(told.then((error) => settle(sandbox, event.ms, { error: error.toData() })));
  });
  await Promise.all(lane.map((sandbox) => sandbox.lend(() => running)));
  await Promise.all(explained);
};

const callOne = async (sandbox: Sandbox, request: GuestRequest, timeoutMs: number, settle: Settle): Promise<void> => {
  const began = performance.now();
  try {
    const reply = (await sandbox.call(request, timeoutMs)) as ExecReply | EvalReply;
    settle(sandbox, performance.now() - began, { reply });
  } catch (error) {
    settle(sandbox, performance.now() - began, { error: ForkdError.from(error).toData() });
  }
};
