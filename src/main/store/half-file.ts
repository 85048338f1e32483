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
  writeSync,
} from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { errnoOf } from '../../contract/errors.js';
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

  /** Names the half beside its target: on the same file system, so that the rename is one step. The caller makes it, with `wx`. */
  static of(storeRoot: string, target: string): HalfFile {
    const id = randomBytes(6).toString('hex');
    mkdirSync(recordsDir(storeRoot), { recursive: true });
    const record = join(recordsDir(storeRoot), id);
    const path = `${resolve(target)}.${id}.part`;
    const lockFd = openSync(record, 'wx', 0o600);
    // Nobody else keeps it, but a cleanup that looks at this moment holds it for an instant.
    while (!native.flockTry(lockFd, 'exclusive')) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 1);
    writeSync(lockFd, path);
    return new HalfFile(target, path, record, lockFd);
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
