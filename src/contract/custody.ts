/**
 * Descriptors that have arrived for a task and that the main thread was not told of yet. They stand in memory that the worker shares
 * with it, and `recvFds` writes them there itself: there is no moment in which only the worker knows of them, so none is lost with it.
 *
 *     [messages, or CLOSED] [descriptors of the last of them] [the first] [the second] ...
 *
 * Only of the last message with descriptors: a worker tells of each before it receives the next. src/native/scm_rights.cc is the other side.
 */
export const CLOSED = -1;

/** What comes with a hot-forked child: pidfd, control, QMP, agent; room for some that a later shim may add. */
export const CUSTODY_FDS_MAX = 8;

const FIRST = 2;

export const makeCustody = (): Int32Array =>
  new Int32Array(new SharedArrayBuffer((FIRST + CUSTODY_FDS_MAX) * Int32Array.BYTES_PER_ELEMENT));

/** From now on what arrives is closed where it arrives. Returns how many messages have brought descriptors. */
export const closeCustody = (custody: Int32Array): number => Atomics.exchange(custody, 0, CLOSED);

/** Of the last message. */
export const lastArrived = (custody: Int32Array): number[] => [...custody.subarray(FIRST, FIRST + (custody[1] ?? 0))];
