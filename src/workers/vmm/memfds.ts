/** The memory files of another process. */
import { readdirSync, readlinkSync } from 'node:fs';
import { errnoOf } from '../../contract/errors.js';

export interface Memfd {
  /** By which it can be opened, proc_pid_fd(5). */
  path: string;
  /** `/memfd:NAME (deleted)`. */
  target: string;
}

/** Those that it has open. What it closes while they are listed is left out. Throws what reading /proc throws. */
export const memfdsOf = (pid: number): Memfd[] =>
  readdirSync(`/proc/${pid}/fd`).flatMap((fd) => {
    const path = `/proc/${pid}/fd/${fd}`;
    try {
      const target = readlinkSync(path);
      return target.startsWith('/memfd:') ? [{ path, target }] : [];
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
      return [];
    }
  });
