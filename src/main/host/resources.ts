import { readdirSync, readFileSync } from 'node:fs';
import type { HostResources } from '../planner/admission.js';

const KIB = 1024;

export const hostResources = (): HostResources => ({
  memoryAvailable: meminfo('MemAvailable'),
  descriptorsLeft: descriptorLimit() - readdirSync('/proc/self/fd').length,
});

/** A row of /proc/meminfo, bytes; 0 when absent. */
export const meminfo = (name: string): number => {
  const row = new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(readFileSync('/proc/meminfo', 'utf8'));
  return Number(row?.[1] ?? 0) * KIB;
};

const descriptorLimit = (): number => {
  const soft = /^Max open files\s+(\S+)/m.exec(readFileSync('/proc/self/limits', 'utf8'))?.[1];
  return soft === 'unlimited' ? Number.MAX_SAFE_INTEGER : Number(soft ?? 1024);
};

/** Named network namespaces (`ip netns list`). */
export const networkNamespaces = (): Set<string> => {
  try {
    return new Set(readdirSync('/var/run/netns'));
  } catch {
    return new Set();
  }
};
