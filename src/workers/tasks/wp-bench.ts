import { closeSync } from 'node:fs';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { MiB } from '../../contract/units.js';
import { native } from '../../native/binding.js';

/** What native.wpBench fills the memory with. */
const FILL = 0x42;

/** Copies write-protected memory to `target`, and looks at every byte of the copy. Throws WP_UNAVAILABLE. */
export const wpBench = ({ bytes, target, ...options }: TaskInput<'wpBench'>): TaskOutput<'wpBench'> => {
  const memfd = native.memfdCreate('forkd:wp-bench');
  try {
    native.fdResize(memfd, bytes);
    return { ...native.wpBench(bytes, memfd, target, options), wrong: wrongBytes(target, bytes) };
  } catch (error) {
    if (!['ENOTSUP', 'EPERM', 'ENOSYS'].includes(errnoOf(error) ?? '')) throw error;
    throw new ForkdError('WP_UNAVAILABLE', { reason: reasonOf(error) }, error);
  } finally {
    closeSync(memfd);
  }
};

const wrongBytes = (fd: number, bytes: number): number => {
  const right = Buffer.alloc(MiB, FILL);
  const found = Buffer.alloc(MiB);
  let wrong = Math.abs(native.fdSize(fd).bytes - bytes);
  for (let at = 0; at < bytes; at += MiB) {
    native.fdRead(fd, found, at);
    if (!found.equals(right)) wrong += found.reduce((sum, byte) => sum + (byte === FILL ? 0 : 1), 0);
  }
  return wrong;
};
