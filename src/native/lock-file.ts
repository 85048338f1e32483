/** Files that are locked as long as somebody works on what they stand for (flock(2)): the lock dies with its holder. */
import { closeSync, openSync } from 'node:fs';
import { native } from './binding.js';

/** Does a live process hold it? False also when there is none that can be opened. */
export const isLocked = (path: string): boolean => {
  let fd: number;
  try {
    fd = openSync(path, 'r');
  } catch {
    return false;
  }
  try {
    return !native.flockTry(fd, 'exclusive');
  } finally {
    closeSync(fd);
  }
};
