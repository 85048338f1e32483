/** Which controllers groups get: v2 gives a group those that the groups above it have passed on. */
import { accessSync, constants, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf } from '../../../contract/errors.js';
import { type Controller, ENGINE_GROUP, type Hierarchy, hierarchies } from './hierarchy.js';
import { words } from './read.js';

const GROUP = 'forkd';

/** The group above those of all VMs. */
export const parentIn = ({ root }: Hierarchy): string => join(root, GROUP);

/** Made where it is missing. Throws what the file system throws. */
export const makeParent = (controller: Controller): Hierarchy => {
  const hierarchy = hierarchies()[controller];
  if (!hierarchy) throw new Error(`this host has no cgroup controller '${controller}'`);
  mkdirSync(parentIn(hierarchy), { recursive: true });
  if (hierarchy.version === 2) enable(hierarchy, [controller]);
  return hierarchy;
};

export const canMake = (controller: Controller): boolean => {
  try {
    accessSync(parentIn(makeParent(controller)), constants.W_OK);
    return true;
  } catch {
    return false;
  }
};

const enable = (hierarchy: Hierarchy, controllers: Controller[]): void => {
  const { root } = hierarchy;
  for (const dir of [root, parentIn(hierarchy)]) {
    const file = join(dir, 'cgroup.subtree_control');
    const missing = controllers.filter((controller) => !words(file).includes(controller));
    if (missing.length === 0) continue;
    const order = missing.map((controller) => `+${controller}`).join(' ');
    for (let tries = 0; !isEnabled(file, order, tries === EMPTY_TRIES || dir !== root); tries++) empty(dir);
  }
};

/** Processes may be born while others are moved. */
const EMPTY_TRIES = 10;

/** False when the group has processes, and it must not be. */
const isEnabled = (file: string, order: string, must: boolean): boolean => {
  try {
    writeFileSync(file, order);
    return true;
  } catch (error) {
    if (must || errnoOf(error) !== 'EBUSY') throw error;
    return false;
  }
};

/** All that is in a group that was given to us, this process among it, moves into a group below. */
const empty = (dir: string): void => {
  const below = join(dir, ENGINE_GROUP);
  mkdirSync(below, { recursive: true });
  for (const pid of words(join(dir, 'cgroup.procs'))) {
    try {
      // `0` is one that is of another pid namespace, and to a write it would mean this process.
      if (Number(pid) > 0) writeFileSync(join(below, 'cgroup.procs'), pid);
    } catch (error) {
      if (errnoOf(error) !== 'ESRCH') throw error;
    }
  }
};
