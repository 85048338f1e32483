/**
 * Tells other commands of this user which sandboxes live and where their agents are: `<data>/sandboxes/<id>.json`.
 * A file whose owner is gone counts as absent; `cleanup` removes it.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { isSandboxId } from '../../contract/names.js';
import { isAlive, startTime } from '../host/process.js';
import type { SandboxInfo } from './sandbox.js';

export interface Published extends SandboxInfo {
  /** Unix socket that speaks the agent's line protocol. */
  socket: string;
  /** Start time of `pid`, in clock ticks since boot. */
  start_time: number;
  /** Root hash of the snapshot that it comes from: its tag may mean another one by now. */
  snapshot_root?: string;
}

const fileOf = (dir: string, id: string): string => join(dir, `${id}.json`);

export const publish = (dir: string, info: SandboxInfo, socket: string, snapshotRoot?: string): void => {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  const root = snapshotRoot === undefined ? {} : { snapshot_root: snapshotRoot };
  const record: Published = { ...info, socket, start_time: startTime(info.pid) ?? 0, ...root };
  writeFileSync(fileOf(dir, info.id), `${JSON.stringify(record, null, 2)}\n`, { mode: 0o600 });
};

export const unpublish = (dir: string, id: string): void => rmSync(fileOf(dir, id), { force: true });

/** Throws SANDBOX_NOT_FOUND when it does not exist or has ended. */
export const lookUp = (dir: string, id: string): Published => {
  const record = isSandboxId(id) ? read(fileOf(dir, id)) : undefined;
  if (!record || !isAlive(record.pid, record.start_time)) throw new ForkdError('SANDBOX_NOT_FOUND', { id });
  return record;
};

/** Every one that lives, by id. */
export const living = (dir: string): Published[] =>
  entries(dir)
    .flatMap((name) => read(join(dir, name)) ?? [])
    .filter(({ pid, start_time }) => isAlive(pid, start_time))
    .sort((a, b) => a.id.localeCompare(b.id));

/** Record files whose sandbox has ended. */
export const stale = (dir: string): string[] =>
  entries(dir)
    .map((name) => join(dir, name))
    .filter((path) => {
      const record = read(path);
      return !record || !isAlive(record.pid, record.start_time);
    });

const entries = (dir: string): string[] => {
  try {
    return readdirSync(dir).filter((name) => isSandboxId(name.replace(/\.json$/, '')) && name.endsWith('.json'));
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
};

const read = (path: string): Published | undefined => {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Published;
  } catch {
    return undefined;
  }
};
