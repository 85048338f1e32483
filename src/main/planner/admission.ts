/** May this host take so many children now? Refusing before is kinder than an out-of-memory kill half way. */
import { ForkdError } from '../../contract/errors.js';
import { formatBytes, MiB } from '../../contract/units.js';

export interface HostResources {
  /** MemAvailable of /proc/meminfo. */
  memoryAvailable: number;
  /** Descriptors this process may still open. */
  descriptorsLeft: number;
}

/** A restored QEMU and what its guest touches until its first answer, by measurement (bench cold-restore), rounded up. */
const CHILD_BYTES = 48 * MiB;

/** pidfd, QMP and agent sockets, and what is open for a moment while it starts. */
const CHILD_DESCRIPTORS = 4;
const SPARE_DESCRIPTORS = 64;

/** Throws MEMORY_SHORT. */
export const requireRoom = (n: number, { memoryAvailable, descriptorsLeft }: HostResources): void => {
  const needed = n * CHILD_BYTES;
  if (needed > memoryAvailable) {
    const reason = `${n} children need about ${formatBytes(needed)}, ${formatBytes(memoryAvailable)} is available`;
    throw new ForkdError('MEMORY_SHORT', { reason });
  }
  if (n * CHILD_DESCRIPTORS + SPARE_DESCRIPTORS > descriptorsLeft) {
    const reason = `${n} children need ${n * CHILD_DESCRIPTORS} descriptors, ${descriptorsLeft} are left (raise \`ulimit -n\`)`;
    throw new ForkdError('MEMORY_SHORT', { reason });
  }
};
