/**
 * Children of this process that nobody owns: the worker that made them died before it could say so. They are known by
 * the work directory that their console lies in.
 */
import { readdirSync, readlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { setTimeout as sleep } from 'node:timers/promises';
import { isUnreaped, nameOf, parentOf, startTime, threadsOf } from '../host/process.js';
import { native } from '../../native/binding.js';
import { QEMU } from '../vmm/find.js';
import { buryWardens, isWarden } from './warden.js';

/** A child that has not got its own descriptors yet is looked at again this soon, and for so long; milliseconds. */
const LOOK_AGAIN_MS = 20;
const LOOK_FOR_MS = 5000;
/** As the kernel cuts it. */
const VMM_NAME = QEMU.slice(0, 15);

/**
 * Ends and reaps them; `owned` are left alone. `since`: when the first may have been born (`ticksNow`). Without a work directory, for
 * copies that hold no file: those that end by themselves, their descriptors being closed. Returns how many there were.
 */
export const endStrays = async (
  workDir: string | undefined,
  owned: ReadonlySet<number>,
  since: number,
): Promise<number> => {
  // A pidfd watch does not keep the process alive; this does until the last one is reaped.
  const hold = setInterval(() => undefined, 60_000);
  const end = performance.now() + LOOK_FOR_MS;
  let count = 0;
  for (;;) {
    const others = childPids().filter((pid) => !owned.has(pid));
    const unborn = others.some((pid) => isBeingBorn(pid, since));
    const strays = others.filter((pid) => (workDir !== undefined && holdsFileIn(workDir, pid)) || hasEnded(pid, since));
    await Promise.all(strays.map(endOne));
    count += strays.length;
    if (!unborn || performance.now() > end) break;
    await sleep(LOOK_AGAIN_MS);
  }
  buryWardens(childPids());
  clearInterval(hold);
  return count;
};

/** A fork begins with one thread and the template's console; it gets its own before it gets the other threads. */
const isBeingBorn = (pid: number, since: number): boolean =>
  threadsOf(pid) === 1 && (startTime(pid) ?? 0) >= since && !isWarden(pid);

/** A VM that ended with its worker holds no file any more, and its first process waits until it is reaped. */
const hasEnded = (pid: number, since: number): boolean => isUnreaped(pid, since) && nameOf(pid) === VMM_NAME;

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
