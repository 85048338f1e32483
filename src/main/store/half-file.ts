/**
 * A file that a command writes for its user, anywhere on this host: it appears under its name when it is whole. While it is half, a locked
 * record in the store says where it is. The lock dies with its holder, so cleanup finds what a killed command left.
 */
import { randomBytes } from 'node:crypto';
import {
  closeSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import { isLocked } from '../../native/lock-file.js';
import { syncDir } from './staging.js';

const HALF = /\.[0-9a-f]{12}\.part$/;
const RECORD = /^[0-9a-f]{12}$/;

export const recordsDir = (storeRoot: string): string => join(storeRoot, '.halves');

export class HalfFile {
  private constructor(
    readonly target: string,
    readonly path: string,
    readonly record: string,
    readonly lockFd: number,
  ) {}

  /**
   * Names the half beside its target: on the same file system, so that the rename is one step. The caller makes it, with `wx`.
   * Throws FILE_MISSING for the directory, FILE_EXPECTED.
   */
  static of(storeRoot: string, target: string): HalfFile {
    const id = randomBytes(6).toString('hex');
    mkdirSync(recordsDir(storeRoot), { recursive: true });
    requirePlace(resolve(target));
    const record = join(recordsDir(storeRoot), id);
    const path = `${resolve(target)}.${id}.part`;
    const lockFd = openSync(record, 'wx', 0o600);
    // Nobody else keeps it, but a cleanup that looks at this moment holds it for an instant.
    while (!native.flockTry(lockFd, 'exclusive')) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    writeSync(lockFd, path);
    return new HalfFile(target, path, record, lockFd);
  }

  /** Throws DISK_FULL when the file system of the file is: `work` writes only there. */
  async during<T>(work: () => Promise<T>): Promise<T> {
    try {
      return await work();
    } catch (error) {
      if (!['ENOSPC', 'EDQUOT'].includes(errnoOf(error) ?? '')) throw error;
      throw new ForkdError('DISK_FULL', { path: dirname(this.path), needed: 'more', free: 'too little' }, error);
    }
  }

  publish(): void {
    const fd = openSync(this.path, 'r');
    native.fdSync(fd);
    closeSync(fd);
    renameSync(this.path, this.target);
    syncDir(dirname(resolve(this.target)));
  }

  close(): void {
    rmSync(this.path, { force: true });
    rmSync(this.record, { force: true });
    closeSync(this.lockFd);
  }
}

/** Said before anything is done. A device or a pipe would be replaced by a file. */
const requirePlace = (path: string): void => {
  const directory = dirname(path);
  if (!statSync(directory, { throwIfNoEntry: false })?.isDirectory())
    throw new ForkdError('FILE_MISSING', { what: 'the directory', path: directory });
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat && !stat.isFile()) throw new ForkdError('FILE_EXPECTED', { path });
};

/** A half whose writer is gone. */
export interface AbandonedHalf {
  path: string;
  record: string;
}

export const abandonedHalves = (storeRoot: string): AbandonedHalf[] => {
  const dir = recordsDir(storeRoot);
  return readdirSync(dir)
    .filter((name) => RECORD.test(name))
    .flatMap((name) => {
      const record = join(dir, name);
      const path = isLocked(record) ? undefined : recorded(record);
      return path === undefined ? [] : [{ path, record }];
    });
};

/** Throws when it is not what its record says: then nothing is removed. */
export const removeHalf = ({ path, record }: AbandonedHalf): void => {
  if (!isHalf(path)) throw new Error('its name is not one that forkd gives');
  rmSync(path, { force: true });
  rmSync(record, { force: true });
};

/** What a record says, if it can be true: an absolute name of the form that `of` gives, with the record's own id. */
const recorded = (record: string): string | undefined => {
  const path = readFileSync(record, 'utf8');
  const id = record.slice(-12);
  return path.startsWith('/') && !path.includes('\0') && HALF.test(path) && path.endsWith(`.${id}.part`)
    ? path
    : undefined;
};

/** Only a plain file counts: a link of that name is somebody else's. */
const isHalf = (path: string): boolean => {
  try {
    return HALF.test(path) && lstatSync(path).isFile();
  } catch (error) {
    return errnoOf(error) === 'ENOENT';
  }
};
