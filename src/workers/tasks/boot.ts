import type { TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { Deadline } from '../deadline.js';
import { AgentPort } from '../vmm/agent.js';
import { explain } from '../vmm/obituary.js';
import { since } from '../vmm/processor-time.js';
import { Qmp } from '../vmm/qmp.js';
import { startVmm } from '../vmm/start.js';
import { wayToJail } from '../vmm/to-jail.js';

/** Of the processors, before it was started. */
const NOTHING = { ranMs: 0, waitedMs: 0 };

/** Starts the parent and waits for the agent's hello: readiness is asked for, never slept for. Nothing of the guest has run before it is in jail. */
export const boot = (input: TaskInput<'boot'>, emit: (event: TaskEvent) => void): TaskOutput<'boot'> => {
  const { vmm, waitMs } = input;
  const began = performance.now();
  const deadline = new Deadline(waitMs);
  const jail = wayToJail(input.jail, vmm.name);
  let pid = 0;
  try {
    let started: ReturnType<typeof startVmm>;
    try {
      started = startVmm(0, vmm, jail.fds);
    } finally {
      jail.started();
    }
    emit({ type: 'spawned', vmm: started });
    pid = started.pid;
    const qmp = new Qmp(started.qmpFd, vmm.name, deadline);
    qmp.negotiate();
    jail.go(deadline);
    qmp.run('cont');
    const hello = new AgentPort(started.agentFd, vmm.name).hello(deadline);
    return { hello, boot_ms: performance.now() - began };
  } catch (error) {
    throw explain(error, vmm.name, vmm.consolePath, { seconds: waitMs / 1000, ran: since(NOTHING, pid) });
  } finally {
    jail.close();
  }
};
