/**
 * Where the tests live. The runner boots one parent, tag `base`, into a data directory of its own; suites fork from it.
 * A suite that writes gets a fresh world with the same snapshot linked into it, so that no test sees another's traces.
 */
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { tmpdir } from 'node:os';

export const BASE_TAG = 'base';

/** XDG_DATA_HOME that holds the shared parent. The runner sets it. */
export const sharedData = (): string => {
  const path = process.env['FORKD_TEST_DATA'];
  if (!path)
    throw new Error('FORKD_TEST_DATA is not set: run the tests by `npm test`, or `node dist/test/run.js NAME`');
  return path;
};

export interface World {
  root: string;
  env: { XDG_DATA_HOME: string; TMPDIR: string; FORKD_RUN_DIR: string; FORKD_RUN_CACHE: string };
  snapshots: string;
  close(): void;
}

/** A data directory and a temp directory of its own; with the parent snapshot when asked for (device state copied, memory reflinked or copied). */
export const makeWorld = (withBase = false): World => {
  const root = mkdtempSync(join(tmpdir(), 'world-'));
  const data = join(root, 'data');
  const temp = join(root, 'tmp');
  const snapshots = join(data, 'forkd/snapshots');
  mkdirSync(snapshots, { recursive: true });
  mkdirSync(temp);
  if (withBase) cpSync(join(sharedData(), 'forkd/snapshots', BASE_TAG), join(snapshots, BASE_TAG), { recursive: true });
  const env = {
    XDG_DATA_HOME: data,
    TMPDIR: temp,
    FORKD_RUN_DIR: join(root, 'run'),
    FORKD_RUN_CACHE: process.env['FORKD_RUN_CACHE'] ?? '/var/cache/forkd',
  };
  return { root, env, snapshots, close: () => rmSync(root, { recursive: true, force: true }) };
};

/** Pids of live QEMU processes that have `text` in their command line or among their open files' names. */
export const qemusOf = (text: string): number[] =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => {
      try {
        const command = readFileSync(`/proc/${pid}/cmdline`, 'utf8');
        if (!command.includes('qemu-system')) return false;
        return command.includes(text) || readdirSync(`/proc/${pid}/fd`).some((fd) => targetOf(pid, fd).includes(text));
      } catch {
        return false;
      }
    });

/** Empty when it was closed after it had been listed: that is no news of the process. */
const targetOf = (pid: number, fd: string): string => {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return '';
  }
};

/** Waits until `done`, looking often: for what the operating system does in its own time after we have asked. */
export const eventually = async (done: () => boolean, ms = 5000): Promise<boolean> => {
  const end = performance.now() + ms;
  while (performance.now() < end) {
    if (done()) return true;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return done();
};
