/** What the API says of an agent's answer. */
import { parsePayload } from './frames.js';
import type { EvalReply, ExecReply } from './guest.js';
import { requireReply } from './replies.js';

export type AnsweredAction = 'exec' | 'eval';

/** Throws RangeError, SyntaxError, TypeError for what is no answer. */
export const answerBody = (action: AnsweredAction, payload: Uint8Array): object => {
  const reply = requireReply(parsePayload({ payload }));
  return action === 'exec' ? execBody(reply as ExecReply) : evalBody(reply as EvalReply);
};

/** What went wrong in the guest is also in `stderr`, where clients of the reference look. */
const execBody = ({ stdout = '', stderr = '', exit_code, error, timed_out }: ExecReply): object => ({
  stdout,
  stderr: error === undefined ? stderr : `${stderr}${error}\n`,
  exit_code,
  ...(error === undefined ? {} : { error }),
  ...(timed_out ? { timed_out } : {}),
});

const evalBody = (reply: EvalReply): object => ({
  ...reply,
  result: reply.result ?? null,
  error: reply.error ?? null,
});
