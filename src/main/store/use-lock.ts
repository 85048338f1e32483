/**
 * Who uses a snapshot: each user keeps its snapshot.json open with a shared flock(2), which ends with the user, however it ends.
 * Removal takes the lock for itself first. The file is the lock: a tag that is replaced leaves its users their own old one.
 */
import { closeSync, fstatSync, openSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { basename } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { native } from '../../native/binding.js';

/** Marks an open snapshot.json as in use. False when the tag is being removed, or has been. */
export const shareUse = (manifestFd: number): boolean =>
  native.flockTry(manifestFd, 'shared') && fstatSync(manifestFd).nlink > 0;

/** The lock for a removal, or undefined when there is nothing to lock. Throws SNAPSHOT_IN_USE naming who uses it. */
export const takeUse = (manifestPath: string, tag: string): number | undefined => {
  let fd: number;
  try {
    fd = openSync(manifestPath, 'r');
  } catch {
    return undefined;
  }
  if (native.flockTry(fd, 'exclusive')) return fd;
  const holder = holdersOf(fd);
  closeSync(fd);
  throw new ForkdError('SNAPSHOT_IN_USE', { tag, holder });
};

/** The processes that have locked the file, as far as this user may see. */
const holdersOf = (fd: number): string => {
  const file = fstatSync(fd);
  const isLocked = (pid: string, n: string): boolean => {
    try {
      const { dev, ino } = statSync(`/proc/${pid}/fd/${n}`);
      if (dev !== file.dev || ino !== file.ino) return false;
      return /^lock:.*FLOCK/m.test(readFileSync(`/proc/${pid}/fdinfo/${n}`, 'utf8'));
    } catch {
      return false;
    }
  };
  const holders = names('/proc')
    .filter((pid) => /^\d+$/.test(pid))
    .filter((pid) => names(`/proc/${pid}/fd`).some((n) => isLocked(pid, n)));
  const described = holders.flatMap((pid) => describe(pid) ?? []);
  return described.length === 0 ? 'another process' : described.join(', ');
};

const COMMAND_CHARS = 100;

/** Undefined when it has ended. */
const describe = (pid: string): string | undefined => {
  if (Number(pid) === process.pid) return 'this process';
  const args = argumentsOf(pid);
  if (!args) return undefined;
  // `node .../main.js fork ...` is what the system sees of `forkd fork ...`.
  const isOurs = basename(args[0] ?? '').startsWith('node') && /(^|\/)(main\.js|forkd)$/.test(args[1] ?? '');
  const command = (isOurs ? ['forkd', ...args.slice(2)] : args).join(' ');
  return `process ${pid} (${command.length > COMMAND_CHARS ? `${command.slice(0, COMMAND_CHARS)}...` : command})`;
};

const argumentsOf = (pid: string): string[] | undefined => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').filter(Boolean);
  } catch {
    return undefined;
  }
};

const names = (dir: string): string[] => {
  try {
    return readdirSync(dir);
  } catch {
    return [];
  }
};
