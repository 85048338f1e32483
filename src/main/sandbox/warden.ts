/**
 * The first process of a jail's pid namespace (src/native/warden), as the engine sees it: a child to be reaped, and a witness.
 *
 * All VMs of a namespace end with its first process, so it goes with the last of them: it waits for the end of a pipe, the line, whose
 * writing end they hold. We hold a duplicate while one of them is ours, and the kernel closes the reading end before it ends the
 * others. So a line that is broken when a VM has ended says why.
 */
import { constants } from 'node:os';
import { basename } from 'node:path';
import type { StartedVmm } from '../../contract/task.js';
import { native, wardenPath } from '../../native/binding.js';
import { inodeOf } from '../../workers/vmm/start.js';
import { nameOf } from '../host/process.js';
import { VmmFd } from '../vmm/driver.js';

/** Whoever is left once the last VM has ended was made by somebody who broke out of one. Strays (strays.ts) are to be found before, milliseconds. */
const GRACE_MS = 10_000;

/** By the inodes of their lines. */
const wardens = new Map<number, Warden>();

export class Warden {
  #users = 0;
  #lineFd: number | undefined;
  /** Of one that is our child, until it is reaped. */
  #pidfd: number | undefined;

  private constructor(
    readonly line: number,
    pidfd: number | undefined,
  ) {
    wardens.set(line, this);
    this.#pidfd = pidfd;
    if (pidfd !== undefined) bury(native.pidfdPid(pidfd), pidfd, () => this.#ended());
  }

  /** Of the namespace that a VM is in, one user more; undefined when that is ours. */
  static of({ pidfd, inside, wardenPidfd }: StartedVmm): Warden | undefined {
    if (!inside) return undefined;
    const warden = wardens.get(inside.line) ?? new Warden(inside.line, wardenPidfd);
    if (warden.#users++ === 0) warden.#lineFd = lineOf(pidfd, inside.line);
    return warden;
  }

  /** Somebody has ended it: its VMs end with it, at once. */
  get isBroken(): boolean {
    return this.#lineFd !== undefined && native.pollReadable([this.#lineFd], 0).length > 0;
  }

  leave(): void {
    if (--this.#users > 0) return;
    if (this.#lineFd !== undefined) native.fdClose(this.#lineFd);
    this.#lineFd = undefined;
    if (this.#pidfd === undefined) wardens.delete(this.line);
    else setTimeout(() => this.#endRest(), GRACE_MS).unref();
  }

  /** Ends all that is left in namespaces without a VM. */
  static endRest(): void {
    for (const warden of wardens.values()) warden.#endRest();
  }

  #endRest(): void {
    if (this.#users === 0 && this.#pidfd !== undefined) native.pidfdSignal(this.#pidfd, constants.signals.SIGKILL);
  }

  #ended(): void {
    if (this.#pidfd !== undefined) native.fdClose(this.#pidfd);
    this.#pidfd = undefined;
    if (this.#users === 0) wardens.delete(this.line);
  }
}

/**
 * From the VM itself, which has it under one number all its life: so it is had of VMs of an engine before this one too, and is no worker's
 * to lose. Undefined when it has ended already, or this user may not: then the reason of an end may be missing.
 */
const lineOf = (pidfd: number, inode: number): number | undefined => {
  let fd: number;
  try {
    fd = native.pidfdGetfd(pidfd, VmmFd.line);
  } catch {
    return undefined;
  }
  if (inodeOf(fd) === inode) return fd;
  native.fdClose(fd);
  return undefined;
};

export const isWarden = (pid: number): boolean => nameOf(pid) === basename(wardenPath);

/** Sees to it that those are reaped that a worker died before it could tell of. The others are waited for already. */
export const buryWardens = (children: number[]): void => {
  // A pid of our own child stays its own until it is reaped, which can be meanwhile.
  for (const pid of children.filter((child) => !mourners.has(child) && isWarden(child))) {
    let pidfd: number | undefined;
    try {
      pidfd = native.pidfdOpen(pid);
      bury(pid, pidfd);
    } catch {
    } finally {
      if (pidfd !== undefined) native.fdClose(pidfd);
    }
  }
};

/** Who is to be told when one is reaped, by its pid. */
const mourners = new Map<number, (() => void)[]>();

/** Reaps it when it ends, and tells. One that is waited for already costs no further descriptor. */
const bury = (pid: number, pidfd: number, done: () => void = () => undefined): void => {
  const before = mourners.get(pid);
  if (before) {
    before.push(done);
    return;
  }
  native.pidfdWatch(pidfd, () => {
    const all = mourners.get(pid) ?? [];
    mourners.delete(pid);
    for (const tell of all) tell();
  });
  mourners.set(pid, [done]);
};
