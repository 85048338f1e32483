/**
 * A memory limit for each child: `<hierarchy>/forkd/<id>`, in cgroup v2 when it has the memory controller, else in v1.
 * The child writes itself into `cgroup.procs` before it becomes QEMU, so nothing of it runs unlimited.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { MiB } from '../../contract/units.js';

interface Hierarchy {
  version: 1 | 2;
  root: string;
  limitFile: string;
}

const GROUP = 'forkd';

/** Where a memory limit can be set on this host, or undefined. */
export const memoryHierarchy = (): Hierarchy | undefined => {
  const mounts = readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .map((line) => line.split(' '));
  const v2 = mounts.find(([, , type]) => type === 'cgroup2')?.[1];
  if (v2 && controllers(v2).includes('memory')) return { version: 2, root: v2, limitFile: 'memory.max' };
  const v1 = mounts.find(([, , type, options]) => type === 'cgroup' && options?.split(',').includes('memory'))?.[1];
  return v1 ? { version: 1, root: v1, limitFile: 'memory.limit_in_bytes' } : undefined;
};

const controllers = (root: string): string[] => {
  try {
    return readFileSync(join(root, 'cgroup.controllers'), 'utf8').trim().split(' ');
  } catch {
    return [];
  }
};

/** Makes the child's group and returns its directory. Throws CGROUP_FAILED. */
export const createCgroup = (id: string, memoryLimitMib: number): string => {
  const hierarchy = memoryHierarchy();
  if (!hierarchy) throw new ForkdError('CGROUP_FAILED', { reason: 'this host has no cgroup memory controller' });
  const parent = join(hierarchy.root, GROUP);
  const dir = groupOf(hierarchy, id);
  try {
    mkdirSync(parent, { recursive: true });
    if (hierarchy.version === 2) {
      writeFileSync(join(hierarchy.root, 'cgroup.subtree_control'), '+memory');
      writeFileSync(join(parent, 'cgroup.subtree_control'), '+memory');
    }
    mkdirSync(dir);
    writeFileSync(join(dir, hierarchy.limitFile), String(memoryLimitMib * MiB));
    return dir;
  } catch (error) {
    throw new ForkdError('CGROUP_FAILED', { reason: reasonOf(error) }, error);
  }
};

const groupOf = ({ root }: Hierarchy, id: string): string => join(root, GROUP, id);

/** Removes the group of a child that has been reaped, if it has one. */
export const removeCgroupOf = (id: string): void => {
  const hierarchy = memoryHierarchy();
  if (hierarchy) removeCgroup(groupOf(hierarchy, id));
};

/** The group must be empty: its process has been reaped. */
export const removeCgroup = (dir: string): void => {
  try {
    rmdirSync(dir);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
};

/** Groups of children that no longer run. */
export const emptyCgroups = (): string[] => {
  const hierarchy = memoryHierarchy();
  const parent = hierarchy && join(hierarchy.root, GROUP);
  if (!parent || !existsSync(parent)) return [];
  return readdirSync(parent, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => join(parent, entry.name))
    .filter((dir) => readFileSync(join(dir, 'cgroup.procs'), 'utf8').trim() === '');
};
