import { ForkdError, reasonOf } from '../../contract/errors.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { Deadline } from '../deadline.js';
import { HotforkControl } from '../vmm/hotfork.js';

/** A shim answers at once, unless it is in the middle of a fork, or the host has no free processor for all of them. */
const REGAIN_MS = 60_000;

/** Takes up the conversation with shims whose engine was killed. All are asked first, then awaited: those that are silent are so together. */
export const regain = ({ shims }: TaskInput<'regain'>): TaskOutput<'regain'> => {
  const deadline = new Deadline(REGAIN_MS);
  const lost: TaskOutput<'regain'>['lost'] = [];
  const attempt = <T>(name: string, step: () => T): T | undefined => {
    try {
      return step();
    } catch (error) {
      lost.push({ name, reason: error instanceof ForkdError ? String(error.details['reason']) : reasonOf(error) });
      return undefined;
    }
  };
  const asked = shims.map(({ name, controlFd }) => ({
    name,
    sign: attempt(name, () => new HotforkControl(controlFd, name).regain(deadline)),
  }));
  for (const { name, sign } of asked) if (sign) attempt(name, sign.await);
  return { lost };
};
