import { ForkdError } from '../../contract/errors.js';
import { type EvalReply, type ExecReply, FrameType } from '../../contract/guest.js';
import type { TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { Deadline } from '../deadline.js';
import { AgentPort } from '../vmm/agent.js';

type Call = TaskInput<'call'>['calls'][number];

interface Pending {
  call: Call;
  agent: AgentPort;
  id: number;
  deadline: Deadline;
  began: number;
}

/** Sends every call first, then takes the replies in the order in which the guests give them. */
export const call = ({ calls }: TaskInput<'call'>, emit: (event: TaskEvent) => void): TaskOutput<'call'> => {
  const pending = new Map<number, Pending>();
  const fail = (c: Call, began: number, error: unknown) =>
    emit({ type: 'failed', index: c.index, ms: performance.now() - began, error: ForkdError.from(error).toData() });

  for (const c of calls) {
    const began = performance.now();
    const deadline = new Deadline(c.timeoutMs);
    const agent = new AgentPort(c.agentFd, c.name);
    try {
      pending.set(c.agentFd, { call: c, agent, id: agent.send(c.request, deadline), deadline, began });
    } catch (error) {
      fail(c, began, error);
    }
  }

  let answered = 0;
  while (pending.size > 0) {
    const soonest = Math.min(...[...pending.values()].map((p) => p.deadline.leftMs));
    for (const fd of native.pollReadable([...pending.keys()], soonest)) {
      const p = pending.get(fd);
      if (p && settle(p)) pending.delete(fd);
    }
    for (const [fd, p] of pending) {
      if (!p.deadline.passed) continue;
      pending.delete(fd);
      fail(p.call, p.began, new ForkdError('AGENT_TIMEOUT', { target: p.call.name, seconds: p.call.timeoutMs / 1000 }));
    }
  }
  return { answered };

  function settle(p: Pending): boolean {
    try {
      const frame = p.agent.read(p.deadline).find((f) => f.type === FrameType.reply && f.id === p.id);
      if (!frame) return false;
      const reply = p.agent.parse(frame) as unknown as ExecReply | EvalReply;
      emit({ type: 'reply', index: p.call.index, ms: performance.now() - p.began, reply });
      answered++;
    } catch (error) {
      fail(p.call, p.began, error);
    }
    return true;
  }
};
