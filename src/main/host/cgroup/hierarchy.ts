/**
 * Where this host has its cgroup controllers: in cgroup v2 those that it has, the others in the hierarchies of v1. In v2 the hierarchy may begin at
 * the group of this process, when that is what it was given (systemd's `Delegate=`, a container's).
 */
import { accessSync, constants, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { errnoOf } from '../../../contract/errors.js';
import { words } from './read.js';

export const CONTROLLERS = ['cpu', 'memory', 'io', 'pids'] as const;
export type Controller = (typeof CONTROLLERS)[number];

export interface Hierarchy {
  version: 1 | 2;
  /** Where our groups begin. */
  root: string;
  mount: string;
}

/** Where this process goes when its own group is to have groups: in v2 no group but the first has both. */
export const ENGINE_GROUP = 'forkd-engine';

let known: Partial<Record<Controller, Hierarchy>> | undefined;

/** Where each controller is on this host; one that is nowhere is absent. */
export const hierarchies = (): Partial<Record<Controller, Hierarchy>> => {
  known ??= findHierarchies(readFileSync('/proc/self/mounts', 'utf8'), readFileSync('/proc/self/cgroup', 'utf8'));
  return known;
};

const findHierarchies = (text: string, own: string): Partial<Record<Controller, Hierarchy>> => {
  const mounts = text.split('\n').map((line) => line.split(' '));
  const mount = mounts.find(([, , type]) => type === 'cgroup2')?.[1];
  const v2 = mount === undefined ? undefined : baseOf(mount, /^0::(\/.*)$/m.exec(own)?.[1] ?? '/');
  const inV2 = v2 === undefined ? [] : words(join(v2, 'cgroup.controllers'));
  const found: Partial<Record<Controller, Hierarchy>> = {};
  for (const controller of CONTROLLERS) {
    const name = controller === 'io' ? 'blkio' : controller;
    const v1 = mounts.find(([, , type, options]) => type === 'cgroup' && options?.split(',').includes(name))?.[1];
    if (mount !== undefined && v2 !== undefined && inV2.includes(controller))
      found[controller] = { version: 2, root: v2, mount };
    else if (v1 !== undefined) found[controller] = { version: 1, root: v1, mount: v1 };
  }
  return found;
};

/** All of v2 where it may be written to, else the group that this process is in, when that is its own. Seen from a container, `path` may lie outside. */
const baseOf = (mount: string, path: string): string => {
  const own = join(mount, basename(path) === ENGINE_GROUP ? dirname(path) : path);
  return !isWritable(mount) && !path.includes('/..') && isWritable(own) ? own : mount;
};

const isWritable = (dir: string): boolean => {
  try {
    for (const name of ['.', 'cgroup.procs', 'cgroup.subtree_control']) accessSync(join(dir, name), constants.W_OK);
    return true;
  } catch {
    return false;
  }
};

/** Why limits of a controller cannot be set here, or undefined. Nothing is changed to find out. */
export const cgroupProblem = (controller: Controller): string | undefined => {
  const hierarchy = hierarchies()[controller];
  if (!hierarchy) return `this host has no cgroup controller '${controller}'`;
  const { version, root } = hierarchy;
  try {
    accessSync(root, constants.W_OK);
    const passedOn = join(root, 'cgroup.subtree_control');
    if (version === 2 && !words(passedOn).includes(controller)) accessSync(passedOn, constants.W_OK);
    return undefined;
  } catch (error) {
    return `${root} cannot be written to (${errnoOf(error)})`;
  }
};
