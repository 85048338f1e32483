/**
 * A download that outlives an interruption: `<dir>/<id>.part`, and beside it `<id>.json`, which says what it is a part of and is locked
 * while a command works on it.
 */
import { createHash } from 'node:crypto';
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  write as writeCallback,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ForkdError } from '../contract/errors.js';
import { native } from '../native/binding.js';
import { isLocked } from '../native/lock-file.js';

const write = promisify(writeCallback);
const ID = /^[0-9a-f]{32}$/;

export class PartFile {
  #bytes: number;

  private constructor(
    readonly path: string,
    readonly record: string,
    readonly lockFd: number,
    readonly fd: number,
  ) {
    this.#bytes = fstatSync(fd).size;
  }

  /** `name` stands for what is downloaded: the same name, the same file. Throws TRANSFER_BUSY. */
  static open(dir: string, name: string): PartFile {
    mkdirSync(dir, { recursive: true });
    const id = createHash('sha256').update(name).digest('hex').slice(0, 32);
    const [path, record] = [join(dir, `${id}.part`), join(dir, `${id}.json`)];
    const lockFd = openSync(record, 'a+', 0o600);
    // One that cleanup has just removed has no name any more: a lock on it is none.
    if (
      !native.flockTry(lockFd, 'exclusive') ||
      statSync(record, { throwIfNoEntry: false })?.ino !== fstatSync(lockFd).ino
    ) {
      closeSync(lockFd);
      throw new ForkdError('TRANSFER_BUSY', { path });
    }
    return new PartFile(path, record, lockFd, openSync(path, 'a+', 0o600));
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** What the server called the version of which this is a part. Without it the part is of no use. */
  get validator(): string | undefined {
    try {
      const { validator } = JSON.parse(readFileSync(this.record, 'utf8')) as { validator?: unknown };
      return typeof validator === 'string' ? validator : undefined;
    } catch {
      return undefined;
    }
  }

  /** Starts anew, with another version. */
  restart(validator: string | undefined): void {
    ftruncateSync(this.fd);
    this.#bytes = 0;
    writeFileSync(this.record, JSON.stringify({ validator }));
  }

  /** Keeps the first `bytes`. */
  truncate(bytes: number): void {
    ftruncateSync(this.fd, bytes);
    this.#bytes = bytes;
  }

  async append(part: Buffer): Promise<void> {
    for (let done = 0; done < part.length; ) done += (await write(this.fd, part, done)).bytesWritten;
    this.#bytes += part.length;
  }

  /** Removed, or left for the next try. */
  close(keep: boolean): void {
    if (!keep || this.#bytes === 0) {
      rmSync(this.path, { force: true });
      rmSync(this.record, { force: true });
    }
    closeSync(this.fd);
    closeSync(this.lockFd);
  }
}

/** Parts that no command works on. */
export const abandonedParts = (dir: string): string[] =>
  readdirSync(dir)
    .filter((name) => name.endsWith('.part') && ID.test(name.slice(0, -5)))
    .map((name) => join(dir, name))
    .filter((path) => !isLocked(`${path.slice(0, -5)}.json`));

export const removePart = (path: string): void => {
  rmSync(path, { force: true });
  rmSync(`${path.slice(0, -5)}.json`, { force: true });
};
