/** Groups that an engine which was killed has left. */
import { existsSync, readdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { hierarchies } from './hierarchy.js';
import { textOf } from './read.js';
import { removeCgroup } from './removal.js';
import { parentIn } from './subtree-control.js';

/** Longest from a child's group to its process: all groups of a fan-out are made before the first child starts. */
export const FAN_OUT_MS = 600_000;

/** When a group was made, ms since the epoch: a sandbox's id says so (contract/names.ts). Undefined for a name that is none. */
export const cgroupMadeAt = (dir: string): number | undefined => {
  const made = /^sb-([0-9a-f]+)-/.exec(basename(dir))?.[1];
  return made === undefined ? undefined : Number.parseInt(made, 16) * 1000;
};

let swept = false;

/** An engine that was killed leaves the groups of its VMs. Once for each process. */
export const sweep = (): void => {
  if (swept) return;
  swept = true;
  for (const dir of emptyCgroups()) {
    try {
      if (Date.now() - (cgroupMadeAt(dir) ?? Number.POSITIVE_INFINITY) > FAN_OUT_MS) removeCgroup(dir);
    } catch {
      // Another's, or in use after all.
    }
  }
};

/** Groups of VMs that no longer run. */
export const emptyCgroups = (): string[] => {
  const parents = [...new Set(Object.values(hierarchies()).map(parentIn))];
  return parents
    .filter((parent) => existsSync(parent))
    .flatMap((parent) =>
      readdirSync(parent, { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map((entry) => join(parent, entry.name)),
    )
    .filter((dir) => textOf(join(dir, 'cgroup.procs')).trim() === '');
};
