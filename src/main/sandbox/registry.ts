/**
 * Tells other commands of this user which sandboxes live and where their agents are: `<data>/sandboxes/<pid>-<start time>-<n>.jsonl`
 * of each engine has a line for each sandbox, and one more when it is gone. A sandbox whose process has ended counts as absent; a file whose engine
 * and whose sandboxes have ended is one for `cleanup` to remove.
 */
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { isSandboxId } from '../../contract/names.js';
import { isAlive, startTime } from '../host/process.js';
import type { SandboxInfo } from './sandbox.js';

export interface Published extends SandboxInfo {
  /** Unix socket at which it is offered (agent/switchboard.ts). */
  socket: string;
  /** Start time of `pid`, in clock ticks since boot. */
  start_time: number;
  /** Root hash of the snapshot that it comes from: its tag may mean another one by now. */
  snapshot_root?: string;
}

interface Gone {
  id: string;
  gone: true;
}

/** Lines of those that are gone, beyond which a file is written anew. */
const GONE_MAX = 1000;

/** Engines of this process, counted. */
let engines = 0;

/** What an engine tells of its sandboxes. */
export class Records {
  readonly #dir: string;
  readonly #path: string;
  readonly #lines = new Map<string, string>();
  #gone = 0;
  #fd: number | undefined;

  constructor(dir: string) {
    this.#dir = dir;
    this.#path = join(dir, `${process.pid}-${startTime(process.pid) ?? 0}-${++engines}.jsonl`);
  }

  /** Throws what the file system throws; then none of them is told of. */
  add(all: { info: SandboxInfo; socket: string; snapshotRoot?: string | undefined }[]): void {
    const lines = all.map(({ info, socket, snapshotRoot }): [string, string] => {
      const root = snapshotRoot === undefined ? {} : { snapshot_root: snapshotRoot };
      const record: Published = { ...info, socket, start_time: startTime(info.pid) ?? 0, ...root };
      return [info.id, `${JSON.stringify(record)}\n`];
    });
    this.#append(lines.map(([, line]) => line).join(''));
    for (const [id, line] of lines) this.#lines.set(id, line);
  }

  remove(id: string): void {
    if (!this.#lines.delete(id)) return;
    this.#gone++;
    try {
      if (this.#gone > GONE_MAX && this.#gone > this.#lines.size) this.#writeAnew();
      else this.#append(`${JSON.stringify({ id, gone: true } satisfies Gone)}\n`);
    } catch {
      // Its process has ended, which says the same.
    }
  }

  /** Of those that live on, it goes on telling. */
  close(): void {
    if (this.#fd === undefined) return;
    closeSync(this.#fd);
    this.#fd = undefined;
    if (this.#lines.size === 0) rmSync(this.#path, { force: true });
  }

  #append(text: string): void {
    if (this.#fd === undefined) {
      mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
      this.#fd = openSync(this.#path, 'a', 0o600);
    }
    const before = fstatSync(this.#fd).size;
    try {
      writeWhole(this.#fd, text);
    } catch (error) {
      // A part of a line would spoil the next one.
      ftruncateSync(this.#fd, before);
      throw error;
    }
  }

  #writeAnew(): void {
    const made = `${this.#path}.tmp`;
    // Appended to, as the one before: what is cut back leaves no hole.
    rmSync(made, { force: true });
    const fd = openSync(made, 'a', 0o600);
    try {
      writeWhole(fd, [...this.#lines.values()].join(''));
      renameSync(made, this.#path);
    } catch (error) {
      closeSync(fd);
      rmSync(made, { force: true });
      throw error;
    }
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = fd;
    this.#gone = 0;
  }
}

/** A disk that is full takes a part of it, and refuses the rest. */
const writeWhole = (fd: number, text: string): void => {
  const bytes = Buffer.from(text);
  for (let written = 0; written < bytes.length; ) written += writeSync(fd, bytes, written);
};

/** Throws SANDBOX_NOT_FOUND when it does not exist or has ended. */
export const lookUp = (dir: string, id: string): Published => {
  const record = isSandboxId(id) ? read(dir, id).find(isLive) : undefined;
  if (!record) throw new ForkdError('SANDBOX_NOT_FOUND', { id });
  return record;
};

/** Every one that lives, by id. */
export const living = (dir: string): Published[] => {
  const found = new Map<string, Published>();
  for (const record of read(dir)) if (!found.has(record.id) && isLive(record)) found.set(record.id, record);
  return [...found.values()].sort((a, b) => a.id.localeCompare(b.id));
};

/** Files that nobody writes any more, and that tell of no sandbox that lives and that another tells nothing of. */
export const stale = (dir: string): string[] => {
  const files = filesIn(dir);
  const told = new Set(files.filter(isKept).flatMap((file) => recordsOf(file.path).map(({ id }) => id)));
  return files
    .filter((file) => !isKept(file))
    .filter(({ path }) => !recordsOf(path).some((record) => !told.has(record.id) && isLive(record)))
    .map(({ path }) => path);
};

const isLive = ({ pid, start_time }: Published): boolean => isAlive(pid, start_time);

/** One that took sandboxes over tells of them what is true now: those whose engine lives come first. Of `id` alone, where it is given. */
const read = (dir: string, id?: string): Published[] => {
  const files = filesIn(dir);
  const [kept, left] = [files.filter(isKept), files.filter((file) => !isKept(file))];
  return [...kept, ...left].flatMap(({ path }) => recordsOf(path, id));
};

interface RecordFile {
  path: string;
  pid: number;
  start: number;
}

/** Its engine lives. */
const isKept = ({ pid, start }: RecordFile): boolean => isAlive(pid, start);

/** `.tmp`: one was about to be written anew. */
const NAME = /^(\d+)-(\d+)-\d+\.jsonl(?:\.tmp)?$/;

const filesIn = (dir: string): RecordFile[] => {
  try {
    return readdirSync(dir).flatMap((name) => {
      const [, pid, start] = NAME.exec(name) ?? [];
      return pid === undefined ? [] : [{ path: join(dir, name), pid: Number(pid), start: Number(start) }];
    });
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
};

const recordsOf = (path: string, id = ''): Published[] => {
  const found = new Map<string, Published>();
  for (const line of textOf(path).split('\n')) {
    if (!line.includes(id)) continue;
    const record = parse(line);
    if (!record) continue;
    if ('gone' in record) found.delete(record.id);
    else if (id === '' || record.id === id) found.set(record.id, record);
  }
  return [...found.values()];
};

const textOf = (path: string): string => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
};

/** Undefined for a line that is not whole: it is being written. */
const parse = (line: string): Published | Gone | undefined => {
  try {
    return JSON.parse(line) as Published | Gone;
  } catch {
    return undefined;
  }
};
