import { parsePayload } from '../../contract/frames.js';
import { requireReply } from '../../contract/replies.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';

/** A large answer of an agent, read where nobody else waits; nothing is made of it. */
export const judge = ({ payload }: TaskInput<'judge'>): TaskOutput<'judge'> => {
  try {
    requireReply(parsePayload({ payload }));
    return {};
  } catch (error) {
    return { problem: String(error) };
  }
};
