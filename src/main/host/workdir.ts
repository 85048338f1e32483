/**
 * Work directories in the temp dir. Each holds a locked file: the lock dies with its owner, so `cleanup` knows for
 * certain which directories are in use, whatever became of the process and its pid.
 */
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { native } from '../../native/binding.js';
import { isLocked } from '../../native/lock-file.js';
import { tempDir, WORK_DIR_PREFIX } from '../paths.js';

export const LOCK_FILE = '.lock';

/** Those of this process, by path. */
const held = new Map<string, number>();

export class WorkDir {
  private constructor(
    readonly path: string,
    readonly lockFd: number,
  ) {
    held.set(path, lockFd);
  }

  /** One that an earlier process made, by its lock, which somebody has held since. */
  static adopt(path: string, lockFd: number): WorkDir {
    ftruncateSync(lockFd);
    writeSync(lockFd, String(process.pid), 0);
    return new WorkDir(path, lockFd);
  }

  /** The lock of a directory that this process holds. */
  static lockOf(path: string): number | undefined {
    return held.get(path);
  }

  /** Makes `<tmp>/forkd-<kind>-<name>-XXXXXX`, mode 0700. */
  static create(kind: 'engine' | 'fork' | 'parent' | 'probe' | 'spare' | 'template', name: string): WorkDir {
    const path = mkdtempSync(join(tempDir(), `${WORK_DIR_PREFIX}${kind}-${name}-`));
    writeFileSync(join(path, LOCK_FILE), String(process.pid));
    const lockFd = openSync(join(path, LOCK_FILE), 'r+');
    // Nobody else keeps the lock, but a cleanup that looks at this moment holds it for an instant.
    const pause = new Int32Array(new SharedArrayBuffer(4));
    while (!native.flockTry(lockFd, 'exclusive')) Atomics.wait(pause, 0, 0, 1);
    return new WorkDir(path, lockFd);
  }

  file(name: string): string {
    return join(this.path, name);
  }

  /** Removes the directory, or leaves it for the user to look into. */
  close(keep = false): void {
    held.delete(this.path);
    if (!keep) rmSync(this.path, { recursive: true, force: true });
    closeSync(this.lockFd);
  }
}

/** True when a live process holds the directory. */
export const isHeld = (dir: string): boolean => isLocked(join(dir, LOCK_FILE));
