/**
 * Names of namespaces, where `ip netns` looks for them. A name keeps its namespace, so it must go when its child does, also after kill -9:
 * a note beside the host's lock says whose it is.
 */
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import { runDir } from '../paths.js';
import { identify, isRunning, type ProcessIdentity } from '../host/process.js';

const NAMES = '/run/netns';
const notesDir = (): string => join(runDir(), 'netns');

export const pathOf = (name: string): string => join(NAMES, name);

/** Of the namespace that a socket is in. Throws NETWORK_FAILED, also when the name is taken. */
export const nameNamespace = (socket: number, name: string): string => {
  const path = pathOf(name);
  try {
    mkdirSync(NAMES, { recursive: true });
    mkdirSync(notesDir(), { recursive: true });
    closeSync(openSync(path, 'wx', 0o444));
    noteOwner(path, process.pid);
    const netns = native.netnsOfSocket(socket);
    try {
      native.netnsBind(netns, path);
    } finally {
      closeSync(netns);
    }
    return path;
  } catch (error) {
    throw new ForkdError('NETWORK_FAILED', { reason: reasonOf(error) }, error);
  }
};

/** Who has the name: first the engine, then the machine, which may outlive it. Whoever reads it finds one or the other. */
export const noteOwner = (path: string, pid: number): void => {
  const [note, next] = ['', '.'].map((prefix) => join(notesDir(), prefix + basename(path))) as [string, string];
  writeFileSync(next, JSON.stringify(identify(pid) ?? null), { mode: 0o600 });
  renameSync(next, note);
};

export const removeName = (path: string): void => {
  try {
    native.netnsUnbind(path);
  } catch {
    // Nothing was bound there yet, or no more.
  }
  rmSync(path, { force: true });
  rmSync(join(notesDir(), basename(path)), { force: true });
};

/** Names that some engine has given, whether it lives or not. */
export const givenNames = (): string[] => {
  try {
    return readdirSync(notesDir()).filter((name) => !name.startsWith('.'));
  } catch {
    return [];
  }
};

/** Names whose owner has ended. */
export const abandonedNames = (): string[] =>
  givenNames()
    .filter((name) => !lives(join(notesDir(), name)))
    .map((name) => join(NAMES, name));

const lives = (note: string): boolean => {
  try {
    const owner = JSON.parse(readFileSync(note, 'utf8')) as ProcessIdentity | null;
    return owner !== null && isRunning(owner);
  } catch {
    return false;
  }
};
