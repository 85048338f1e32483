/** What an answer of a guest must be before anything else looks at it: a guest may have an agent of its own making. */
import type { GuestReply, GuestRequest } from './guest.js';
import { limits } from './limits.js';

type Action = GuestRequest['action'];

/** Bytes of the answer to an action. */
export const replyMaxBytes = (action: Action): number => {
  if (action === 'exec' || action === 'eval') return limits.agentFrameMaxBytes;
  return SHORT.has(action) ? limits.receiptMaxBytes : limits.agentAnswerMaxBytes;
};

const SHORT = new Set<Action>(['ping', 'clock', 'seal', 'fork']);

const TEXTS = ['stdout', 'stderr', 'error', 'traceback', 'result', 'result_json', 'stack', 'numpy_version'];
const NUMBERS = ['exit_code', 'run', 'pid', 'size', 'generation'];
const LISTS = ['runs'];
const ENTRY_TEXTS = ['name', 'type'];
const ENTRY_NUMBERS = ['size', 'mode', 'uid', 'gid', 'mtime_unix'];

/** Throws TypeError. */
export const requireReply = (reply: Record<string, unknown>): GuestReply => {
  requireKeys(reply, TEXTS, isText);
  requireKeys(reply, NUMBERS, Number.isSafeInteger);
  requireKeys(reply, LISTS, Array.isArray);
  for (const entry of [reply['entry'], ...(Array.isArray(reply['entries']) ? reply['entries'] : [])])
    if (entry !== undefined) requireEntry(entry);
  return reply as unknown as GuestReply;
};

const requireEntry = (entry: unknown): void => {
  if (typeof entry !== 'object' || entry === null) throw new TypeError('an entry is no object');
  const fields = entry as Record<string, unknown>;
  requireKeys(fields, ENTRY_TEXTS, isText);
  requireKeys(fields, ENTRY_NUMBERS, Number.isFinite);
};

const requireKeys = (of: Record<string, unknown>, keys: string[], fits: (value: unknown) => boolean): void => {
  for (const key of keys)
    if (of[key] !== undefined && !fits(of[key])) throw new TypeError(`its ${key} is of another type`);
};

const isText = (value: unknown): boolean => typeof value === 'string';
