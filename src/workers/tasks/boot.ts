import type { TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { Deadline } from '../deadline.js';
import { AgentPort } from '../vmm/agent.js';
import { explain } from '../vmm/obituary.js';
import { startVmm } from '../vmm/start.js';

/** Starts the parent and waits for the agent's hello: readiness is asked for, never slept for. */
export const boot = ({ vmm, waitMs }: TaskInput<'boot'>, emit: (event: TaskEvent) => void): TaskOutput<'boot'> => {
  const began = performance.now();
  const started = startVmm(0, vmm);
  emit({ type: 'spawned', vmm: started });
  try {
    const hello = new AgentPort(started.agentFd, vmm.name).hello(new Deadline(waitMs));
    return { hello, boot_ms: performance.now() - began };
  } catch (error) {
    throw explain(error, vmm.name, vmm.consolePath, waitMs / 1000);
  }
};
