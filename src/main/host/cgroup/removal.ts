/** How groups go: when nothing runs in them any more. */
import { rmdirSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf } from '../../../contract/errors.js';
import { type GroupFiles, writeWhereItIs } from './files.js';
import { words } from './read.js';

/** A process takes a moment to die. */
const END_TRIES = 50;
const END_MS = 2;

/** Its VM has been reaped. What that has left behind, against the rules of its jail, is ended. */
export const removeGroup = (files: GroupFiles): void => {
  for (const dir of files.dirs) {
    for (let tries = 0; !isRemoved(dir, tries === END_TRIES); tries++) {
      writeWhereItIs(files.path('pids', 'pids.max') ?? '', '0');
      for (const pid of words(join(dir, 'cgroup.procs')).map(Number)) endProcess(pid);
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, END_MS);
    }
  }
};

/** Throws EBUSY when it must be. */
const isRemoved = (dir: string, must: boolean): boolean => {
  try {
    removeCgroup(dir);
    return true;
  } catch (error) {
    if (must || errnoOf(error) !== 'EBUSY') throw error;
    return false;
  }
};

const endProcess = (pid: number): void => {
  try {
    if (pid > 0) process.kill(pid, 'SIGKILL');
  } catch {
    // Gone by itself.
  }
};

/** The group must be empty. */
export const removeCgroup = (dir: string): void => {
  try {
    rmdirSync(dir);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
};
