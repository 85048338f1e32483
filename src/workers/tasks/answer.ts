import { answerBody } from '../../contract/answers.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';

/** A large answer of an agent, read and written again where nobody else waits. */
export const answer = ({ action, payload }: TaskInput<'answer'>): TaskOutput<'answer'> => {
  try {
    return { body: Buffer.from(JSON.stringify(answerBody(action, payload))) };
  } catch (error) {
    return { problem: String(error) };
  }
};
