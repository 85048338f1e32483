import { type ErrorData, ForkdError } from '../../contract/errors.js';
import type { SpareChild, TaskEvent, TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { FirstAnswers } from '../vmm/first-answers.js';
import { explain } from '../vmm/obituary.js';

/** Spares at work for each worker at a time. Two took an eighth longer for 100 (0.89 and 1.01 s): they take turns on one processor, each with its pages cold. */
const WINDOW = 1;

/** Spares have walked this very path under a name of their own, so all their pages and code are there. */
export const awaken = (input: TaskInput<'awaken'>, emit: (event: TaskEvent) => void): TaskOutput<'awaken'> => {
  const { answerMs, firstEval, cancel } = input;
  const failures: { index: number; error: ErrorData }[] = [];
  const fail = (child: SpareChild, error: unknown) =>
    failures.push({ index: child.index, error: explain(error, child.name, child.consolePath).toData() });
  const awake = new FirstAnswers<SpareChild>({
    answerMs,
    emit,
    fail,
    ...(firstEval === undefined ? {} : { firstEval }),
  });
  const queue = [...input.children];
  const began = performance.now();
  while (queue.length > 0 || awake.size > 0) {
    if (Atomics.load(cancel, 0) !== 0) for (const child of queue.splice(0)) fail(child, new ForkdError('CANCELLED'));
    while (queue.length > 0 && awake.size < WINDOW) {
      const child = queue.shift() as SpareChild;
      awake.greet(child, child.agentFd, began, performance.now());
    }
    if (awake.size === 0) continue;
    for (const fd of native.pollReadable(awake.descriptors, awake.patience)) awake.listen(fd);
    awake.expire();
  }
  return { failures };
};
