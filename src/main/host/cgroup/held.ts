/** Which of its limits a group was held by: those that it has met, and the one that it was ended for. */
import type { HeldKind } from '../../../contract/held.js';
import { limits as maxima } from '../../../contract/limits.js';
import type { ResourceLimits, ResourceUsage } from '../../../contract/resources.js';
import type { GroupFiles } from './files.js';
import type { IoRate } from './io-rate.js';
import { pick } from './read.js';

/** How often each. Only files that are there are read: this is asked often. */
export const metLimits = (
  files: GroupFiles,
  { cpus, ioMibPerS }: ResourceLimits,
  ioRate: IoRate,
): [HeldKind, number][] => {
  const throttled = cpus === undefined ? null : pick(files.read('cpu', 'cpu.stat'), 'nr_throttled');
  if (ioMibPerS !== undefined) ioRate.look(ioMibPerS);
  const met: [HeldKind, number | null][] = [
    ['cpu-limit', throttled],
    ['io-limit', ioRate.met],
    ['pids-limit', pick(files.read('pids', 'pids.events'), 'max')],
  ];
  return met.filter((one): one is [HeldKind, number] => Boolean(one[1]));
};

/** By the kernel, or by itself: QEMU does that where it cannot have a thread. */
export const exceededLimit = (usage: ResourceUsage, limits: ResourceLimits): string | undefined => {
  const { memory_kills: kills, pids_refused: refused } = usage;
  const { memoryMib, pids = maxima.vmTasks } = limits;
  if (kills) return memoryMib === undefined ? "this host's memory" : `memory, ${memoryMib} MiB`;
  return refused ? `processes and threads, ${pids}` : undefined;
};
