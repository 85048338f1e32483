import { closeSync, openSync } from 'node:fs';
import { type ErrorData, ForkdError } from '../../contract/errors.js';
import type { EvalReply } from '../../contract/guest.js';
import type { RestoreChild, TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { Deadline } from '../deadline.js';
import { AgentPort } from '../vmm/agent.js';
import { takeIdentity } from '../vmm/identity.js';
import { loadState } from '../vmm/load-state.js';
import { explain } from '../vmm/obituary.js';

import { startVmm } from '../vmm/start.js';
import { wayToJail } from '../vmm/to-jail.js';

/**
 * One child after another: a restore is bound by the processor, so more at once in one worker would only make each late.
 * A child that fails does not stop the rest.
 */
export const restore = (input: TaskInput<'restore'>, emit: (event: TaskEvent) => void): TaskOutput<'restore'> => {
  const failures: { index: number; error: ErrorData }[] = [];
  for (const child of input.children) {
    if (Atomics.load(input.cancel, 0) !== 0) {
      failures.push({ index: child.index, error: new ForkdError('CANCELLED').toData() });
      continue;
    }
    try {
      restoreOne(child, input, emit);
    } catch (error) {
      failures.push({ index: child.index, error: explain(error, child.vmm.name, child.vmm.consolePath).toData() });
    }
  }
  return { failures };
};

const restoreOne = (child: RestoreChild, input: TaskInput<'restore'>, emit: (event: TaskEvent) => void): void => {
  const began = performance.now();
  const deadline = new Deadline(input.answerMs);
  // A descriptor of its own, because the file offset belongs to the open file, not to the number.
  const state = openSync(`/proc/self/fd/${input.stateFd}`, 'r');
  const jail = wayToJail(child.jail, child.vmm.name);
  let up: number;
  let vmm: ReturnType<typeof startVmm>;
  try {
    try {
      vmm = startVmm(child.index, child.vmm, [[state, input.stateTarget], ...jail.fds]);
    } finally {
      closeSync(state);
      jail.started();
    }
    emit({ type: 'spawned', vmm });
    ({ up } = loadState(vmm.qmpFd, child.vmm.name, input.stateTarget, deadline, () => jail.go(deadline)));
  } finally {
    jail.close();
  }
  const loaded = performance.now();

  const agent = new AgentPort(vmm.agentFd, child.vmm.name);
  const receipt = takeIdentity(agent, child.identity, deadline);
  const firstResult =
    input.firstEval === undefined
      ? undefined
      : (agent.call({ action: 'eval', code: input.firstEval }, deadline) as unknown as EvalReply);
  const answered = performance.now();
  emit({
    type: 'ready',
    index: child.index,
    receipt,
    times: {
      spawn_ms: up - began,
      load_ms: loaded - up,
      first_answer_ms: answered - loaded,
      ready_at: performance.timeOrigin + answered,
    },
    ...(firstResult ? { firstResult } : {}),
  });
};
