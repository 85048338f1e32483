/**
 * The daemon's memory: a few maps that survive its end at any instant. `<state>` is one JSON object of maps, as the
 * reference's state file is; `<state>.journal` has every change since, one line each:
 *
 *     <16 hex digits of the SHA-256 of the rest> {"map":"workspaces","key":"x","value":{...}}     no value: the key is gone
 *
 * A change is acknowledged when its line is on disk (fdatasync; those that come meanwhile share the next one), one of a sandbox when
 * it is written: it survives the daemon, and what ends the host ends the sandbox. What a
 * crash left half written has a wrong sum, was never acknowledged, and is cut off. At every start, and when the journal
 * has grown, the maps are written anew: a new file, fsync, rename, fsync of the directory, and only then an empty journal.
 * A crash between the two replays changes that are in the file already, which changes nothing.
 */
import { createHash } from 'node:crypto';
import { closeSync, fsyncSync, ftruncateSync, mkdirSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import { syncDir } from '../store/staging.js';

export type MapName = 'snapshots' | 'sandboxes' | 'workspaces';

interface Change {
  map: MapName;
  key: string;
  value?: unknown;
}

type Maps = Record<MapName, Map<string, unknown>>;

interface Waiting {
  line: string;
  /** It has to survive the host, too. */
  durable: boolean;
  done: (error?: unknown) => void;
}

/** A journal larger than this is folded into the state file, bytes. */
const FOLD_BYTES = 4 * 1024 * 1024;

export class Journal {
  readonly #maps: Maps;
  readonly #lock: number;
  #file: FileHandle | undefined;
  #bytes = 0;
  #waiting: Waiting[] = [];
  #writing: Promise<void> | undefined;

  /** Throws DAEMON_REFUSED for a file that is not ours, is damaged, or is another daemon's. */
  constructor(readonly path: string) {
    try {
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      this.#lock = openSync(`${path}.lock`, 'a+', 0o600);
    } catch (error) {
      throw refused(`cannot keep its state in ${path}: ${reasonOf(error)}`, error);
    }
    if (!native.flockTry(this.#lock, 'exclusive')) {
      closeSync(this.#lock);
      throw refused(`another daemon keeps its state in ${path}`);
    }
    try {
      ftruncateSync(this.#lock);
      writeSync(this.#lock, String(process.pid));
      this.#maps = loadMaps(path);
      this.#fold();
    } catch (error) {
      closeSync(this.#lock);
      throw error instanceof ForkdError
        ? error
        : refused(`cannot keep its state in ${path}: ${reasonOf(error)}`, error);
    }
  }

  /** What a map holds, as of the last change that was asked for. */
  entries<T>(map: MapName): [string, T][] {
    return [...this.#maps[map]] as [string, T][];
  }

  /** Settles when the change is on disk; one of `sandboxes`, when the kernel has it. Throws what the file system throws; then the change is in memory alone. */
  async put(map: MapName, key: string, value: unknown): Promise<void> {
    apply(this.#maps, { map, key, value });
    const text = JSON.stringify({ map, key, value });
    await new Promise<void>((resolve, reject) => {
      const done = (error?: unknown) => (error === undefined ? resolve() : reject(error));
      this.#waiting.push({ line: `${sumOf(text)} ${text}\n`, durable: map !== 'sandboxes', done });
      this.#writing ??= this.#drain();
    });
  }

  /** Settles when all of the changes are on disk, by one write. */
  async putAll(map: MapName, entries: [key: string, value: unknown][]): Promise<void> {
    // Those that are asked for in the same turn share the next write.
    await Promise.all(entries.map(([key, value]) => this.put(map, key, value)));
  }

  has(map: MapName, key: string): boolean {
    return this.#maps[map].has(key);
  }

  remove(map: MapName, key: string): Promise<void> {
    return this.put(map, key, undefined);
  }

  async close(): Promise<void> {
    await this.#writing;
    await this.#file?.close();
    this.#fold();
    closeSync(this.#lock);
  }

  async #drain(): Promise<void> {
    // What is asked for in this turn belongs to the same write.
    await null;
    while (this.#waiting.length > 0) {
      const batch = this.#waiting;
      this.#waiting = [];
      try {
        const text = Buffer.from(batch.map(({ line }) => line).join(''));
        this.#file ??= await open(`${this.path}.journal`, 'r+');
        await this.#file.write(text, 0, text.length, this.#bytes);
        if (batch.some(({ durable }) => durable)) await this.#file.datasync();
        this.#bytes += text.length;
        for (const { done } of batch) done();
        if (this.#bytes > FOLD_BYTES) this.#fold();
      } catch (error) {
        for (const { done } of batch) done(error);
        // Whole lines behind a shorter one would look like damage.
        await this.#file?.truncate(this.#bytes).catch(() => undefined);
      }
    }
    this.#writing = undefined;
  }

  /** Synchronous: while it runs, no change may be acknowledged. */
  #fold(): void {
    const maps = Object.entries(this.#maps).map(([name, map]) => [name, Object.fromEntries(map)]);
    const fd = openSync(`${this.path}.tmp`, 'w', 0o600);
    try {
      writeSync(fd, `${JSON.stringify(Object.fromEntries(maps), null, 2)}\n`);
      fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
    renameSync(`${this.path}.tmp`, this.path);
    syncDir(dirname(this.path));
    const journal = openSync(`${this.path}.journal`, 'a', 0o600);
    try {
      ftruncateSync(journal);
      fsyncSync(journal);
    } finally {
      closeSync(journal);
    }
    syncDir(dirname(this.path));
    this.#bytes = 0;
  }
}

/**
 * What a journal holds, for who reads it while no daemon keeps it. What a daemon changes meanwhile may be missed.
 * Throws DAEMON_REFUSED for a file that is damaged.
 */
export const peek = <T>(path: string, map: MapName): T[] => [...loadMaps(path)[map].values()] as T[];

const loadMaps = (path: string): Maps => {
  const maps: Maps = { snapshots: new Map(), sandboxes: new Map(), workspaces: new Map() };
  const state = read(path);
  if (state !== undefined) {
    const found = parse(state);
    if (found === undefined) throw refused(`${path} is not a JSON object`);
    for (const name of Object.keys(maps) as MapName[])
      for (const [key, value] of Object.entries(found[name] ?? {})) apply(maps, { map: name, key, value });
  }
  const lines = (read(`${path}.journal`) ?? '').split('\n').filter((line) => line !== '');
  for (const [index, line] of lines.entries()) {
    const change = changeOf(line);
    if (change) apply(maps, change);
    // A crash leaves at most an end that is not whole; anything else is damage.
    else if (lines.slice(index + 1).some((later) => changeOf(later)))
      throw refused(`line ${index + 1} of ${path}.journal is damaged`);
    else break;
  }
  return maps;
};

const apply = (maps: Maps, { map, key, value }: Change): void => {
  if (value === undefined) maps[map].delete(key);
  else maps[map].set(key, value);
};

const refused = (reason: string, cause?: unknown): ForkdError => new ForkdError('DAEMON_REFUSED', { reason }, cause);

const sumOf = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 16);

const changeOf = (line: string): Change | undefined => {
  const text = line.slice(17);
  return line[16] === ' ' && line.slice(0, 16) === sumOf(text) ? (JSON.parse(text) as Change) : undefined;
};

const read = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
};

const parse = (text: string): Partial<Record<MapName, Record<string, unknown>>> | undefined => {
  try {
    const value: unknown = JSON.parse(text);
    return value !== null && typeof value === 'object' && !Array.isArray(value) ? value : undefined;
  } catch {
    return undefined;
  }
};
