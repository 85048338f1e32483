/**
 * What forkd left behind when it was killed: found, judged, and removed one by one.
 *
 * Nothing is removed on the strength of a name alone: it must be ours (name and owner), a real directory or file (links are
 * never followed), and not in use. Every one is judged again in the moment before it goes.
 */
import {
  closeSync,
  lstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  rmSync,
  type Stats,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { keeperPath, native } from '../../native/binding.js';
import { abandonedParts, removePart } from '../../http/part-file.js';
import { blobsDir } from '../oci/rootfs.js';
import { abandonedNames, removeName } from '../network/names.js';
import { hostRulesUnused, removeUnusedHostRules } from '../network/networks.js';
import { pullsDir } from '../hub/pull.js';
import { STAGING_PREFIX } from '../image/cache.js';
import {
  imagesDir,
  recipeDisksDir,
  rootfsDir,
  sandboxesDir,
  snapshotsDir,
  tempDir,
  WORK_DIR_PREFIX,
} from '../paths.js';
import { stale } from '../sandbox/registry.js';
import { type AbandonedHalf, abandonedHalves, removeHalf } from '../store/half-file.js';
import { leftoverTag, Store } from '../store/store.js';
import { cgroupMadeAt, emptyCgroups, FAN_OUT_MS } from './cgroup/leftovers.js';
import { removeCgroup } from './cgroup/removal.js';
import { startTime } from './process.js';
import { LOCK_FILE } from './workdir.js';

export type LeftoverKind =
  | 'process'
  | 'work dir'
  | 'snapshot staging'
  | 'image staging'
  | 'half-made file'
  | 'partial download'
  | 'sandbox record'
  | 'cgroup'
  | 'network namespace'
  | 'network rules';

export interface Leftover {
  kind: LeftoverKind;
  /** Path, or `pid N (work dir)`. */
  path: string;
  bytes: number;
}

export interface Skipped extends Leftover {
  reason: string;
}

export interface Leftovers {
  /** In an order that works: a process before the directory it writes to. */
  remove: Leftover[];
  skip: Skipped[];
}

/** Work directories, those of the reference's commands, and the image builder's, which has no lock and lives for minutes. */
const LOCKED = ['engine-', 'fork-', 'parent-', 'probe-', 'spare-', 'template-'].map((kind) => WORK_DIR_PREFIX + kind);
const UNLOCKED = ['unpack-', 'pull-', 'agent-', 'busybox-'].map((kind) => WORK_DIR_PREFIX + kind);
const BUILDER = ['agent-', 'busybox-'].map((kind) => WORK_DIR_PREFIX + kind);

/** As `nft` names it. */
const HOST_RULES = 'table ip forkd';

/** A directory is made before it is locked, a record before it is full: what is younger may be half made. */
const JUST_MADE_MS = 200;
/** Longest that the image builder needs one of its temporary directories, generously. */
const BUILD_MS = 3_600_000;

/** Of this user, on this host; of snapshots only what is in `snapshotRoot`. */
export const findLeftovers = (snapshotRoot = snapshotsDir()): Leftovers => {
  const found: Leftovers = { remove: [], skip: [] };
  const open = openFiles();
  const consider = (leftover: Leftover, reason: string | undefined) => {
    if (reason === undefined) found.remove.push(leftover);
    else found.skip.push({ ...leftover, reason });
  };
  for (const { pid, dir } of orphans()) consider({ kind: 'process', path: `pid ${pid} (${dir})`, bytes: 0 }, undefined);
  const doomed = new Set<string>();
  for (const keeper of keepers()) {
    const { pid, state } = keeper;
    const reason = keeperInUse(keeper);
    if (reason === undefined) for (const dir of locksOf(pid)) doomed.add(dir);
    if (reason !== DAEMON_RUNS)
      consider({ kind: 'process', path: `pid ${pid} (keeper of ${state})`, bytes: 0 }, reason);
  }
  for (const path of workDirs()) {
    const reason = doomed.has(path) ? undefined : workDirInUse(path, open);
    consider({ kind: 'work dir', path, bytes: sizeOf(path) }, reason);
  }
  for (const path of listed(() => new Store(snapshotRoot).abandoned())) {
    consider({ kind: 'snapshot staging', path, bytes: sizeOf(path) }, notOurDirectory(path));
  }
  for (const path of imageStagings())
    consider({ kind: 'image staging', path, bytes: sizeOf(path) }, builderLives(path));
  for (const { path } of halves(snapshotRoot))
    consider({ kind: 'half-made file', path, bytes: sizeOf(path) }, notOurFile(path));
  for (const path of parts(snapshotRoot))
    consider({ kind: 'partial download', path, bytes: sizeOf(path) }, notOurFile(path));
  for (const path of listed(() => stale(sandboxesDir())))
    consider({ kind: 'sandbox record', path, bytes: sizeOf(path) }, recordInUse(path));
  for (const path of listed(emptyCgroups)) consider({ kind: 'cgroup', path, bytes: 0 }, cgroupInUse(path, open));
  for (const path of abandonedNames()) consider({ kind: 'network namespace', path, bytes: 0 }, undefined);
  if (hostRulesUnused()) consider({ kind: 'network rules', path: HOST_RULES, bytes: 0 }, undefined);
  return found;
};

/** Removes one that was found in `snapshotRoot`, after judging it again. Throws CLEANUP_REFUSED when it is in use now, or not ours. */
export const removeLeftover = async ({ kind, path }: Leftover, snapshotRoot = snapshotsDir()): Promise<void> => {
  if (kind === 'process') return killOrphan(path);
  // No file, and judged with the lock held.
  if (kind === 'network rules') return removeUnusedHostRules();
  // Whose it was, or another cleanup, was quicker.
  if (kind !== 'half-made file' && lstat(path) === undefined) return;
  const reason = judge(kind, path, snapshotRoot);
  if (reason !== undefined) throw new ForkdError('CLEANUP_REFUSED', { path, reason });
  if (kind === 'work dir') removeWorkDir(path);
  else if (kind === 'snapshot staging') removeStaging(path);
  else if (kind === 'image staging') rmSync(path, { recursive: true, force: true });
  else if (kind === 'half-made file')
    halves(snapshotRoot)
      .filter((half) => half.path === path)
      .forEach(removeHalf);
  else if (kind === 'partial download') removePart(path);
  else if (kind === 'sandbox record') rmSync(path, { force: true });
  else if (kind === 'network namespace') removeName(path);
  else removeEmptyCgroup(path);
};

const removeEmptyCgroup = (path: string): void => {
  try {
    removeCgroup(path);
  } catch (error) {
    if (errnoOf(error) === 'EBUSY') throw new ForkdError('CLEANUP_REFUSED', { path, reason: 'it is in use' });
    throw error;
  }
};

/** Why it may not be removed now, or undefined. */
const judge = (kind: LeftoverKind, path: string, snapshotRoot: string): string | undefined => {
  if (kind === 'work dir')
    return isWorkDir(path) ? workDirInUse(path, openFiles()) : 'its name is not one that forkd gives';
  if (kind === 'snapshot staging')
    return new Store(snapshotRoot).abandoned().includes(path) ? notOurDirectory(path) : 'it is in use';
  if (kind === 'image staging') return builderLives(path);
  if (kind === 'half-made file')
    return halves(snapshotRoot).some((half) => half.path === path) ? notOurFile(path) : 'it is in use';
  if (kind === 'partial download') return parts(snapshotRoot).includes(path) ? notOurFile(path) : 'it is in use';
  if (kind === 'sandbox record') return stale(sandboxesDir()).includes(path) ? recordInUse(path) : 'it is in use';
  if (kind === 'network namespace') return abandonedNames().includes(path) ? undefined : 'it is in use';
  return emptyCgroups().includes(path) ? cgroupInUse(path, openFiles()) : 'it is in use';
};

// Work directories

const isWorkDir = (path: string): boolean =>
  dirname(path) === tempRoot() && [...LOCKED, ...UNLOCKED].some((prefix) => basename(path).startsWith(prefix));

/** By its name; in the temp dir of whoever made it, which may be another than ours. */
const isLockedKind = (path: string): boolean => LOCKED.some((prefix) => basename(path).startsWith(prefix));

/** Links resolved, as /proc shows paths. */
const tempRoot = (): string => realpathSync(tempDir());

const workDirs = (): string[] =>
  names(tempRoot())
    .map((name) => join(tempRoot(), name))
    .filter((path) => isWorkDir(path) && lstat(path)?.isDirectory() === true);

const workDirInUse = (path: string, open: OpenFile[]): string | undefined => {
  const problem = notOurDirectory(path);
  if (problem !== undefined) return problem;
  const lock = takeLock(path);
  if (lock === 'held') return 'in use';
  if (lock === undefined) return unlockedInUse(path, open);
  closeSync(lock);
  // Its maker writes its pid into the file and then locks it: a live maker may be between the two.
  const file = join(path, LOCK_FILE);
  const pid = Number(readText(file));
  return isMaker(pid, lstat(file)?.mtimeMs) ? `in use by process ${pid}` : undefined;
};

/** A directory without a lock file: not ours in this version, or its maker has not come to the lock. */
const unlockedInUse = (path: string, open: OpenFile[]): string | undefined => {
  const age = Date.now() - (lstat(path)?.mtimeMs ?? Date.now());
  if (age < JUST_MADE_MS) return 'just made';
  const user = open.find(({ target }) => target === path || target.startsWith(`${path}/`));
  if (user) return `in use by process ${user.pid}`;
  const isBuilders = BUILDER.some((prefix) => basename(path).startsWith(prefix));
  return isBuilders && age < BUILD_MS ? 'may be in use: an image build makes such' : undefined;
};

const removeWorkDir = (path: string): void => {
  const lock = takeLock(path);
  if (lock === 'held') throw new ForkdError('CLEANUP_REFUSED', { path, reason: 'in use' });
  try {
    rmSync(path, { recursive: true, force: true });
  } finally {
    if (lock !== undefined) closeSync(lock);
  }
};

/** The directory's lock as a descriptor, `held` when another process has it, undefined when there is none. */
const takeLock = (dir: string): number | 'held' | undefined => lockOf(join(dir, LOCK_FILE));

const lockOf = (file: string): number | 'held' | undefined => {
  if (!lstat(file)?.isFile()) return undefined;
  const fd = openSync(file, 'r');
  if (native.flockTry(fd, 'exclusive')) return fd;
  closeSync(fd);
  return 'held';
};

// Staging directories

const removeStaging = (path: string): void => {
  const tag = leftoverTag(basename(path));
  if (tag === undefined)
    throw new ForkdError('CLEANUP_REFUSED', { path, reason: 'its name is not one that forkd gives' });
  new Store(dirname(path)).removeAbandoned(path);
};

const STAGED_IMAGE = new RegExp(`^\\${STAGING_PREFIX}(\\d+)-\\w{6}$`);

const imageStagings = (): string[] =>
  [imagesDir(), rootfsDir(), recipeDisksDir()]
    .flatMap((dir) => names(dir).map((name) => join(dir, name)))
    .filter((path) => STAGED_IMAGE.test(basename(path)))
    .filter((path) => lstat(path)?.isDirectory() === true);

const builderLives = (path: string): string | undefined => {
  const pid = Number(STAGED_IMAGE.exec(basename(path))?.[1]);
  return notOurDirectory(path) ?? (isMaker(pid, lstat(path)?.mtimeMs) ? `in use by process ${pid}` : undefined);
};

// Half-made files and parts of downloads

/** Of interrupted pulls: the same pull would go on with it. */
const parts = (snapshotRoot: string): string[] =>
  [pullsDir(snapshotRoot), blobsDir(rootfsDir())].flatMap((dir) => listed(() => abandonedParts(dir)));

const halves = (snapshotRoot: string): AbandonedHalf[] => listed(() => abandonedHalves(snapshotRoot));

/** One that never came to be leaves only its record. */
const notOurFile = (path: string): string | undefined => {
  const stat = lstat(path);
  if (!stat) return undefined;
  if (!stat.isFile()) return 'it is not a file';
  return isOurs(stat) ? undefined : 'it belongs to another user';
};

// Records and cgroups

const recordInUse = (path: string): string | undefined => {
  const problem = notOurFile(path);
  if (problem !== undefined) return problem;
  return Date.now() - (lstat(path)?.mtimeMs ?? 0) < JUST_MADE_MS ? 'just made' : undefined;
};

const cgroupInUse = (path: string, open: OpenFile[]): string | undefined => {
  const problem = notOurDirectory(path);
  if (problem !== undefined) return problem;
  const made = cgroupMadeAt(path);
  if (made === undefined) return 'its name is not one that forkd gives';
  const isYoung = Date.now() - made < FAN_OUT_MS;
  const isStarting = open.some(({ target }) => basename(target) === LOCK_FILE && isLockedKind(dirname(target)));
  return isYoung && isStarting ? 'VMs are being started, and one may be about to use it' : undefined;
};

// Processes

interface Orphan {
  pid: number;
  start: number;
  dir: string;
}

/**
 * QEMU processes of ours whose engine is gone: their command line names the console in a work directory, and nobody holds
 * that directory, nor any other that they have a file of. There should be none: they end with their engine (PR_SET_PDEATHSIG), or
 * with the last who holds their sockets.
 */
const orphans = (): Orphan[] =>
  pids().flatMap((pid) => {
    const start = startTime(pid);
    const dir = qemuWorkDir(pid);
    if (start === undefined || dir === undefined || workDirInUse(dir, []) !== undefined) return [];
    // A hot-forked one has its template's command line and a console of its own.
    const isHeld = filesOf(pid)
      .map((file) => dirname(file))
      .some((folder) => isLockedKind(folder) && workDirInUse(folder, []) !== undefined);
    return isHeld ? [] : [{ pid, start, dir }];
  });

interface KeeperProcess {
  pid: number;
  start: number;
  /** The state file of the daemon whose sandboxes it holds. */
  state: string;
}

const KEEPER_SUFFIX = '.keeper';
const DAEMON_RUNS = 'in use';

/** What keeps sandboxes alive for the next daemon (sandbox/keeper.ts); it lives as long as one of them does. */
const keepers = (): KeeperProcess[] =>
  pids().flatMap((pid) => {
    const start = startTime(pid);
    const stat = lstat(`/proc/${pid}`);
    const [file = '', socket = ''] = (readText(`/proc/${pid}/cmdline`) ?? '').split('\0');
    if (start === undefined || !stat || !isOurs(stat) || basename(file) !== basename(keeperPath)) return [];
    return socket.endsWith(KEEPER_SUFFIX) ? [{ pid, start, state: socket.slice(0, -KEEPER_SUFFIX.length) }] : [];
  });

/** Undefined when no daemon can take back what it holds: the state that says what it is, is gone. */
const keeperInUse = ({ state }: KeeperProcess): string | undefined => {
  const lock = lockOf(`${state}.lock`);
  if (lock === 'held') return DAEMON_RUNS;
  if (lock !== undefined) closeSync(lock);
  return lstat(state)?.isFile() ? `a daemon with --state ${state} takes its sandboxes back` : undefined;
};

/** The work directories whose locks a process holds. */
const locksOf = (pid: number): string[] =>
  filesOf(pid)
    .filter((path) => basename(path) === LOCK_FILE && isLockedKind(dirname(path)))
    .map((path) => dirname(path));

const CONSOLE = new RegExp(
  `^file,id=console,path=(/.*/${WORK_DIR_PREFIX}(?:fork|parent|probe|template)-[^/]+)/[^/]+\\.console,`,
);

const qemuWorkDir = (pid: number): string | undefined => {
  const stat = lstat(`/proc/${pid}`);
  const args = (readText(`/proc/${pid}/cmdline`) ?? '').split('\0');
  if (!stat || !isOurs(stat) || !basename(args[0] ?? '').startsWith('qemu-system-')) return undefined;
  const dir = args.map((arg) => CONSOLE.exec(arg)?.[1]).find((path) => path !== undefined);
  // Commas are doubled in QEMU's options. A directory without its lock file says nothing about its owner.
  const path = dir?.replaceAll(',,', ',');
  return path !== undefined && lstat(join(path, LOCK_FILE))?.isFile() ? path : undefined;
};

const SIGKILL = 9;
const DEATH_MS = 5000;

const killOrphan = async (path: string): Promise<void> => {
  const pid = Number(/^pid (\d+) /.exec(path)?.[1]);
  const before = startTime(pid);
  if (before === undefined) return;
  // The descriptor names this very process for good; what is checked after it was opened is true of what is killed.
  const pidfd = native.pidfdOpen(pid);
  try {
    const abandoned = keepers().filter((keeper) => keeperInUse(keeper) === undefined);
    const isOrphan = [...orphans(), ...abandoned].some((one) => one.pid === pid && one.start === before);
    if (startTime(pid) !== before) return;
    if (!isOrphan) throw new ForkdError('CLEANUP_REFUSED', { path, reason: 'it is not an orphan of forkd any more' });
    native.pidfdSignal(pidfd, SIGKILL);
    const deadline = Date.now() + DEATH_MS;
    while (startTime(pid) === before) {
      if (Date.now() > deadline) throw new ForkdError('CLEANUP_REFUSED', { path, reason: 'it does not end' });
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  } finally {
    closeSync(pidfd);
  }
};

// What all of them need

interface OpenFile {
  pid: number;
  target: string;
}

/** Every path that some process has open or stands in, as far as this user may see. */
const openFiles = (): OpenFile[] =>
  pids()
    .filter((pid) => pid !== process.pid)
    .flatMap((pid) => filesOf(pid).map((target) => ({ pid, target })));

const filesOf = (pid: number): string[] => {
  const links = [`/proc/${pid}/cwd`, ...names(`/proc/${pid}/fd`).map((fd) => `/proc/${pid}/fd/${fd}`)];
  return links.flatMap((link) => {
    try {
      const target = readlinkSync(link);
      return target.startsWith('/') ? [target] : [];
    } catch {
      return [];
    }
  });
};

const pids = (): number[] =>
  names('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number);

/** Clock ticks a second in /proc: USER_HZ, 100 on every Linux for x86. */
const TICKS = 100;
/** /proc/stat gives the boot time in whole seconds. */
const BOOT_ERROR_MS = 2000;

/** Does process `pid` live, and did it before `madeMs`? One that started later has only inherited the number. */
const isMaker = (pid: number, madeMs = Date.now()): boolean => {
  const start = Number.isSafeInteger(pid) && pid > 0 ? startTime(pid) : undefined;
  if (start === undefined) return false;
  const boot = Number(/^btime (\d+)$/m.exec(readText('/proc/stat') ?? '')?.[1]) * 1000;
  return boot + (start * 1000) / TICKS <= madeMs + BOOT_ERROR_MS;
};

const notOurDirectory = (path: string): string | undefined => {
  const stat = lstat(path);
  if (!stat?.isDirectory()) return 'it is not a directory';
  return isOurs(stat) ? undefined : 'it belongs to another user';
};

const isOurs = (stat: Stats): boolean => stat.uid === process.getuid?.();

const lstat = (path: string): Stats | undefined => {
  try {
    return lstatSync(path);
  } catch {
    return undefined;
  }
};

const names = (dir: string): string[] => listed(() => readdirSync(dir));

/** What cannot be read holds nothing that this user could remove. */
const listed = <T>(list: () => T[]): T[] => {
  try {
    return list();
  } catch {
    return [];
  }
};

const readText = (path: string): string | undefined => {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
};

/** Bytes on disk of a file or of everything below a directory; links count as themselves. */
const sizeOf = (path: string): number => {
  const stat = lstat(path);
  if (!stat) return 0;
  const own = stat.blocks * 512;
  return stat.isDirectory() ? names(path).reduce((sum, name) => sum + sizeOf(join(path, name)), own) : own;
};

export const removalProblem = (error: unknown): string =>
  error instanceof ForkdError && error.code === 'CLEANUP_REFUSED' ? String(error.details['reason']) : reasonOf(error);
