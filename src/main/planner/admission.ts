/** May this host take so many children now? Refusing before is kinder than an out-of-memory kill half way. */
import { ForkdError } from '../../contract/errors.js';
import type { NetworkWish } from '../../contract/network.js';
import { formatBytes, MiB } from '../../contract/units.js';
import type { Mechanism } from './plan.js';

export interface HostResources {
  /** MemAvailable of /proc/meminfo. */
  memoryAvailable: number;
  /** Descriptors this process may still open. */
  descriptorsLeft: number;
}

/**
 * What one child takes until its first answer and a little work, bytes, by measurement (bench cold-restore and fan-out),
 * rounded up. A hot-forked child shares its template's pages.
 */
const CHILD_BYTES: Record<Mechanism, number> = { 'cold-restore': 48 * MiB, 'hot-fork': 6 * MiB };

/** pidfd, QMP, agent and shim sockets, and one that is open for a moment while it starts. */
export const CHILD_DESCRIPTORS = 5;
/** Namespace, links, tap and rules, in the kernel: 0.73 MiB for each of 4,000. */
const NETWORK_BYTES = MiB;
/** Tap, rules and a socket for names; where some are allowed, a second one for long answers. */
const NETWORK_DESCRIPTORS = 3;
const NAMES_DESCRIPTORS = 1;
export const NETWORK_DESCRIPTORS_MAX = NETWORK_DESCRIPTORS + NAMES_DESCRIPTORS;
export const SPARE_DESCRIPTORS = 64;

/** Throws MEMORY_SHORT, DESCRIPTORS_SHORT. */
export const requireRoom = (
  n: number,
  mechanism: Mechanism,
  { memoryAvailable, descriptorsLeft }: HostResources,
  network?: NetworkWish,
): void => {
  const needed = n * (CHILD_BYTES[mechanism] + (network ? NETWORK_BYTES : 0));
  if (needed > memoryAvailable) {
    const reason = `${n} children need about ${formatBytes(needed)}, ${formatBytes(memoryAvailable)} is available`;
    throw new ForkdError('MEMORY_SHORT', { reason });
  }
  const descriptors = n * (CHILD_DESCRIPTORS + networkDescriptors(network));
  if (descriptors + SPARE_DESCRIPTORS > descriptorsLeft)
    throw new ForkdError('DESCRIPTORS_SHORT', { n, needed: descriptors, left: descriptorsLeft });
};

const networkDescriptors = (network: NetworkWish | undefined): number => {
  if (!network) return 0;
  return NETWORK_DESCRIPTORS + (network.allowDomains.length > 0 ? NAMES_DESCRIPTORS : 0);
};
