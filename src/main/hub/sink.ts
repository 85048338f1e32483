/** A file that is written from front to back. The disk writes while the processors work: little is left to wait for at the end. */
import { closeSync, fdatasync, fsync, openSync, write as writeCallback } from 'node:fs';
import { promisify } from 'node:util';

/** So much may wait for the disk. */
const SYNC_BYTES = 32 * 1024 * 1024;

const sync = promisify(fdatasync);
const syncAll = promisify(fsync);
const write = promisify(writeCallback);

export class Sink {
  readonly #fd: number;
  #at = 0;
  #synced = 0;
  #syncing: Promise<void> = Promise.resolve();

  /** Throws EEXIST when there is such a file. */
  constructor(path: string, mode = 0o644) {
    this.#fd = openSync(path, 'wx', mode);
  }

  /** The memory may be used again when it returns. */
  async write(part: Uint8Array): Promise<void> {
    for (let done = 0; done < part.length; )
      done += (await write(this.#fd, part, done, part.length - done, this.#at + done)).bytesWritten;
    this.#at += part.length;
    if (this.#at - this.#synced < SYNC_BYTES) return;
    await this.#syncing;
    this.#syncing = sync(this.#fd);
    this.#syncing.catch(() => undefined);
    this.#synced = this.#at;
  }

  /** All of it is on the disk. */
  async finish(): Promise<void> {
    await this.#syncing;
    await syncAll(this.#fd);
  }

  async close(): Promise<void> {
    await this.#syncing.catch(() => undefined);
    closeSync(this.#fd);
  }
}
