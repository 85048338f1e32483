/**
 * Children of this process that nobody owns: the worker that made them died before it could say so. They are known by
 * the work directory that their console lies in.
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { parentOf } from '../host/process.js';
import { native } from '../../native/binding.js';

/** Ends and reaps them; `owned` are left alone. Returns how many there were. */
export const endStrays = async (workDir: string, owned: ReadonlySet<number>): Promise<number> => {
  const strays = childPids().filter((pid) => !owned.has(pid) && holdsFileIn(workDir, pid));
  // A pidfd watch does not keep the process alive; this does until the last one is reaped.
  const hold = setInterval(() => undefined, 60_000);
  await Promise.all(strays.map(endOne));
  clearInterval(hold);
  return strays.length;
};

const endOne = (pid: number): Promise<void> =>
  new Promise((resolve) => {
    // A pid of our own child stays its own until we reap it.
    const pidfd = native.pidfdOpen(pid);
    native.pidfdWatch(pidfd, () => {
      native.fdClose(pidfd);
      resolve();
    });
    native.pidfdSignal(pidfd, constants.signals.SIGKILL);
  });

const childPids = (): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => parentOf(pid) === process.pid);

const holdsFileIn = (dir: string, pid: number): boolean => {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => linkOf(pid, fd).startsWith(`${dir}/`));
  } catch {
    return false;
  }
};

const linkOf = (pid: number, fd: string): string => {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return '';
  }
};
