/** One lock file a tag, in `<root>/.locks/`. flock(2): the kernel lets go when the holder dies, however it dies. */
import { closeSync, mkdirSync, openSync, readFileSync, truncateSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import { isLocked } from '../../native/lock-file.js';

const lockPath = (root: string, tag: string): string => join(root, '.locks', `${tag}.lock`);

export class TagLock {
  private constructor(readonly fd: number) {}

  /** Throws SNAPSHOT_BUSY. The file stays: removing a lock file that another may be opening would break the lock. */
  static take(root: string, tag: string): TagLock {
    mkdirSync(join(root, '.locks'), { recursive: true });
    const path = lockPath(root, tag);
    const fd = openSync(path, 'a+', 0o600);
    if (!native.flockTry(fd, 'exclusive')) {
      closeSync(fd);
      throw new ForkdError('SNAPSHOT_BUSY', { tag, holder: readFileSync(path, 'utf8').trim() });
    }
    truncateSync(path);
    writeSync(fd, `${process.pid}\n`);
    return new TagLock(fd);
  }

  static isHeld(root: string, tag: string): boolean {
    return isLocked(lockPath(root, tag));
  }

  release(): void {
    closeSync(this.fd);
  }
}
