/**
 * The group of one VM: `<hierarchy>/forkd/<name>`, in cgroup v2 for the controllers that it has, else in the hierarchies of v1. A
 * VM is born in it, or writes itself into it before it becomes QEMU, so nothing of it runs unlimited. In v2 the hierarchy may begin at the group
 * of this process, when that is what it was given (systemd's `Delegate=`, a container's).
 */
import {
  accessSync,
  constants,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { limits as maxima } from '../../contract/limits.js';
import type { HeldKind } from '../../contract/held.js';
import type { LimitsChange, ResourceLimits, ResourceUsage } from '../../contract/resources.js';
import type { JoinOrder } from '../../contract/task.js';
import { MiB } from '../../contract/units.js';

export const CONTROLLERS = ['cpu', 'memory', 'io', 'pids'] as const;
export type Controller = (typeof CONTROLLERS)[number];

export interface Hierarchy {
  version: 1 | 2;
  /** Where our groups begin. */
  root: string;
  mount: string;
}

const GROUP = 'forkd';
/** Where this process goes when its own group is to have groups: in v2 no group but the first has both. */
const ENGINE_GROUP = 'forkd-engine';
/** Microseconds over which a share of the processors is counted: the kernel's own default. */
const PERIOD_US = 100_000;

const OF: Record<keyof ResourceLimits, Controller> = {
  cpus: 'cpu',
  memoryMib: 'memory',
  ioMibPerS: 'io',
  pids: 'pids',
};

let known: Partial<Record<Controller, Hierarchy>> | undefined;

/** Where each controller is on this host; one that is nowhere is absent. */
export const hierarchies = (): Partial<Record<Controller, Hierarchy>> => {
  known ??= findHierarchies(readFileSync('/proc/self/mounts', 'utf8'), readFileSync('/proc/self/cgroup', 'utf8'));
  return known;
};

const findHierarchies = (text: string, own: string): Partial<Record<Controller, Hierarchy>> => {
  const mounts = text.split('\n').map((line) => line.split(' '));
  const mount = mounts.find(([, , type]) => type === 'cgroup2')?.[1];
  const v2 = mount === undefined ? undefined : baseOf(mount, /^0::(\/.*)$/m.exec(own)?.[1] ?? '/');
  const inV2 = v2 === undefined ? [] : words(join(v2, 'cgroup.controllers'));
  const found: Partial<Record<Controller, Hierarchy>> = {};
  for (const controller of CONTROLLERS) {
    const name = controller === 'io' ? 'blkio' : controller;
    const v1 = mounts.find(([, , type, options]) => type === 'cgroup' && options?.split(',').includes(name))?.[1];
    if (mount !== undefined && v2 !== undefined && inV2.includes(controller))
      found[controller] = { version: 2, root: v2, mount };
    else if (v1 !== undefined) found[controller] = { version: 1, root: v1, mount: v1 };
  }
  return found;
};

/** All of v2 where it may be written to, else the group that this process is in, when that is its own. Seen from a container, `path` may lie outside. */
const baseOf = (mount: string, path: string): string => {
  const own = join(mount, basename(path) === ENGINE_GROUP ? dirname(path) : path);
  return !isWritable(mount) && !path.includes('/..') && isWritable(own) ? own : mount;
};

const isWritable = (dir: string): boolean => {
  try {
    for (const name of ['.', 'cgroup.procs', 'cgroup.subtree_control']) accessSync(join(dir, name), constants.W_OK);
    return true;
  } catch {
    return false;
  }
};

/** Why limits of a controller cannot be set here, or undefined. Nothing is changed to find out. */
export const cgroupProblem = (controller: Controller): string | undefined => {
  const hierarchy = hierarchies()[controller];
  if (!hierarchy) return `this host has no cgroup controller '${controller}'`;
  const { version, root } = hierarchy;
  try {
    accessSync(root, constants.W_OK);
    const passedOn = join(root, 'cgroup.subtree_control');
    if (version === 2 && !words(passedOn).includes(controller)) accessSync(passedOn, constants.W_OK);
    return undefined;
  } catch (error) {
    return `${root} cannot be written to (${errnoOf(error)})`;
  }
};

/** v2 gives a group the controllers that its parent has passed on. */
const enable = (root: string, controllers: Controller[]): void => {
  for (const dir of [root, join(root, GROUP)]) {
    const file = join(dir, 'cgroup.subtree_control');
    const missing = controllers.filter((controller) => !words(file).includes(controller));
    if (missing.length === 0) continue;
    const order = missing.map((controller) => `+${controller}`).join(' ');
    for (let tries = 0; !isEnabled(file, order, tries === EMPTY_TRIES || dir !== root); tries++) empty(dir);
  }
};

/** Processes may be born while others are moved. */
const EMPTY_TRIES = 10;

/** False when the group has processes, and it must not be. */
const isEnabled = (file: string, order: string, must: boolean): boolean => {
  try {
    writeFileSync(file, order);
    return true;
  } catch (error) {
    if (must || errnoOf(error) !== 'EBUSY') throw error;
    return false;
  }
};

/** All that is in a group that was given to us, this process among it, moves into a group below. */
const empty = (dir: string): void => {
  const below = join(dir, ENGINE_GROUP);
  mkdirSync(below, { recursive: true });
  for (const pid of words(join(dir, 'cgroup.procs'))) {
    try {
      // `0` is one that is of another pid namespace, and to a write it would mean this process.
      if (Number(pid) > 0) writeFileSync(join(below, 'cgroup.procs'), pid);
    } catch (error) {
      if (errnoOf(error) !== 'ESRCH') throw error;
    }
  }
};

/**
 * Memory is accounted to the group that a page was first used in, so a VM joins as soon as it has answered; what one VM starts of
 * threads is limited always. The other controllers come when they are asked for: each costs every VM some 0.1 ms.
 */
const ALWAYS: Controller[] = ['memory', 'pids'];

/** Between two looks at what was read and written: a rate over less is a burst. */
const IO_LOOK_MS = 500;
/** Of its rate. */
const IO_MET = 0.9;

interface IoLook {
  at: number;
  read: number;
  written: number;
}

export class Cgroup {
  #limits: ResourceLimits = {};
  #ioLook: IoLook | undefined;
  #ioMet = 0;

  private constructor(
    readonly name: string,
    /** Where its disk lies: io is limited for that device. */
    readonly disk: string | undefined,
  ) {}

  /** Throws CGROUP_FAILED when a limit cannot be set. Undefined when none is asked for and this host, or this user, can have no groups. */
  static create(name: string, wanted: ResourceLimits, disk?: string): Cgroup | undefined {
    sweep();
    const cgroup = new Cgroup(name, disk);
    const needed = controllersOf(wanted);
    try {
      for (const controller of new Set([...ALWAYS, ...needed])) {
        try {
          cgroup.#make(controller);
        } catch (error) {
          if (needed.includes(controller)) throw error;
        }
      }
      if (cgroup.#dirs.length === 0) return undefined;
      cgroup.change({ pids: maxima.vmTasks, ...wanted }, wanted);
      return cgroup;
    } catch (error) {
      cgroup.remove();
      throw failure(error);
    }
  }

  /** One for a VM that runs already: `joining` is what makes it so. Undefined where this host, or this user, can have no groups. */
  static later(name: string, disk?: string): Cgroup | undefined {
    sweep();
    const cgroup = new Cgroup(name, disk);
    return cgroup.#always.length === 0 ? undefined : cgroup;
  }

  /** One that another process has made. */
  static open(name: string, wanted: ResourceLimits, disk?: string): Cgroup {
    const cgroup = new Cgroup(name, disk);
    cgroup.#limits = wanted;
    return cgroup;
  }

  get limits(): ResourceLimits {
    return this.#limits;
  }

  /**
   * What a VM writes itself into before its first step. Not clone3(2) with CLONE_INTO_CGROUP, where v2 has that: the kernel asks what
   * the template in its jail may do, and here what the engine might that has opened the file.
   */
  get procs(): string[] {
    return this.#dirs.map((dir) => join(dir, 'cgroup.procs'));
  }

  /** The work of a worker (tasks/join.ts). */
  joining(pid: number): JoinOrder {
    const dirs = this.#always.map((hierarchy) => this.#dir(hierarchy));
    const limit = this.#path('pids', 'pids.max');
    return { dirs, files: limit === undefined ? [] : [[limit, String(maxima.vmTasks)]], pid };
  }

  /** The same for a copy that shares neither this VM's limits nor its end: where this process itself is. */
  get outside(): string[] {
    const own = textOf('/proc/self/cgroup').split('\n');
    const found = CONTROLLERS.flatMap((controller) => {
      const hierarchy = hierarchies()[controller];
      if (!hierarchy || !existsSync(this.#dir(hierarchy))) return [];
      const { version, mount } = hierarchy;
      // `N:controllers:path`; v2 names none. Seen from a container, the path may lie outside of what is mounted.
      const name = version === 2 ? '' : controller === 'io' ? 'blkio' : controller;
      const path = own.map((line) => line.split(':')).find(([, names]) => names?.split(',').includes(name))?.[2] ?? '';
      const file = join(mount, path, 'cgroup.procs');
      return [existsSync(file) ? file : join(mount, 'cgroup.procs')];
    });
    return [...new Set(found)];
  }

  /** Sets, changes and lifts limits. `told` is what was asked for, where that is less. Throws CGROUP_FAILED; those before the one that failed are set. */
  change(change: LimitsChange, told: LimitsChange = change): void {
    try {
      for (const [key, value] of Object.entries(change) as [keyof ResourceLimits, number | null][]) {
        const controller = OF[key];
        const hierarchy = hierarchies()[controller];
        const dir = hierarchy && this.#dir(hierarchy);
        if (!dir || !existsSync(dir)) {
          if (!(key in told)) continue;
          throw new Error(hierarchy ? `it has no group in ${hierarchy.root}` : `no controller '${controller}' here`);
        }
        WRITE[key](dir, hierarchy.version, value, this.disk);
        if (key === 'ioMibPerS') this.#ioLook = this.#ioNow();
      }
    } catch (error) {
      throw failure(error);
    }
    const merged: LimitsChange = { ...this.#limits, ...told };
    this.#limits = Object.fromEntries(Object.entries(merged).filter(([, value]) => value !== null));
  }

  /** The same for a VM that runs: it joins the groups that it was not born in. */
  changeRunning(pid: number, change: LimitsChange): void {
    try {
      for (const controller of controllersOf(change)) {
        const hierarchy = hierarchies()[controller];
        if (hierarchy && existsSync(this.#dir(hierarchy))) continue;
        writeFileSync(join(this.#make(controller), 'cgroup.procs'), String(pid));
      }
    } catch (error) {
      throw failure(error);
    }
    this.change(change);
  }

  usage(): ResourceUsage {
    const cpu = this.#read('cpu', 'cpu.stat');
    const { cpu: cpuHierarchy, memory: memoryHierarchy } = hierarchies();
    const cpuOld = cpuHierarchy?.version === 1;
    const memoryOld = memoryHierarchy?.version === 1;
    const memory = this.#read('memory', memoryOld ? 'memory.oom_control' : 'memory.events');
    const { read, written } = this.#io() ?? { read: null, written: null };
    return {
      // v1 counts it in a hierarchy of its own.
      cpu_ms: cpuOld ? null : scaled(pick(cpu, 'usage_usec'), 1000),
      cpu_throttled_periods: pick(cpu, 'nr_throttled'),
      cpu_throttled_ms: cpuOld ? scaled(pick(cpu, 'throttled_time'), 1e6) : scaled(pick(cpu, 'throttled_usec'), 1000),
      io_read_bytes: read,
      io_written_bytes: written,
      memory_bytes: this.#number('memory', memoryOld ? 'memory.usage_in_bytes' : 'memory.current'),
      memory_refused: memoryOld ? this.#number('memory', 'memory.failcnt') : pick(memory, 'max'),
      memory_kills: pick(memory, 'oom_kill'),
      pids: this.#number('pids', 'pids.current'),
      pids_refused: pick(this.#read('pids', 'pids.events'), 'max'),
    };
  }

  /** The limit that it was ended for, by the kernel, or by itself: QEMU does that where it cannot have a thread. */
  exceeded(): string | undefined {
    const { memory_kills: kills, pids_refused: refused } = this.usage();
    const { memoryMib, pids = maxima.vmTasks } = this.#limits;
    if (kills) return memoryMib === undefined ? "this host's memory" : `memory, ${memoryMib} MiB`;
    return refused ? `processes and threads, ${pids}` : undefined;
  }

  /** Limits that it has met, and how often. Only files that are there are read: this is asked often. */
  met(): [HeldKind, number][] {
    const { cpus, ioMibPerS } = this.#limits;
    const throttled = cpus === undefined ? null : pick(this.#read('cpu', 'cpu.stat'), 'nr_throttled');
    if (ioMibPerS !== undefined) this.#lookAtIo(ioMibPerS);
    const met: [HeldKind, number | null][] = [
      ['cpu-limit', throttled],
      ['io-limit', this.#ioMet],
      ['pids-limit', pick(this.#read('pids', 'pids.events'), 'max')],
    ];
    return met.filter((one): one is [HeldKind, number] => Boolean(one[1]));
  }

  /** No kernel counts how often a rate was met. */
  #lookAtIo(ioMibPerS: number): void {
    const before = this.#ioLook;
    if (before && performance.now() - before.at < IO_LOOK_MS) return;
    const now = this.#ioNow();
    this.#ioLook = now;
    if (!before || !now) return;
    const most = Math.max(now.read - before.read, now.written - before.written);
    if (most >= IO_MET * ioMibPerS * MiB * ((now.at - before.at) / 1000)) this.#ioMet++;
  }

  #ioNow(): IoLook | undefined {
    const moved = this.#io();
    return moved && { at: performance.now(), ...moved };
  }

  #io(): { read: number; written: number } | undefined {
    const { io: hierarchy } = hierarchies();
    if (!hierarchy || !existsSync(this.#dir(hierarchy))) return undefined;
    const isOld = hierarchy.version === 1;
    const text = this.#read('io', isOld ? 'blkio.throttle.io_service_bytes' : 'io.stat');
    const [read, written] = isOld ? [/ Read (\d+)$/gm, / Write (\d+)$/gm] : [/ rbytes=(\d+)/g, / wbytes=(\d+)/g];
    return { read: sum(text, read), written: sum(text, written) };
  }

  /** Its VM has been reaped. What that has left behind, against the rules of its jail, is ended. */
  remove(): void {
    for (const dir of this.#dirs) {
      for (let tries = 0; !isRemoved(dir, tries === END_TRIES); tries++) {
        writeWhereItIs(this.#path('pids', 'pids.max') ?? '', '0');
        for (const pid of words(join(dir, 'cgroup.procs')).map(Number)) endProcess(pid);
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, END_MS);
      }
    }
  }

  /** One for each hierarchy in which it is. */
  get #dirs(): string[] {
    const all = Object.values(hierarchies()).map((hierarchy) => this.#dir(hierarchy));
    return [...new Set(all)].filter((dir) => existsSync(dir));
  }

  /** Where every VM has a group, on this host and as this user; their parent is there then. */
  get #always(): Hierarchy[] {
    return [...new Set(ALWAYS.filter((controller) => canMake(controller)).flatMap((c) => hierarchies()[c] ?? []))];
  }

  #dir({ root }: Hierarchy): string {
    return join(root, GROUP, this.name);
  }

  #make(controller: Controller): string {
    const dir = this.#dir(makeParent(controller));
    mkdirSync(dir, { recursive: true });
    return dir;
  }

  #path(controller: Controller, file: string): string | undefined {
    const hierarchy = hierarchies()[controller];
    return hierarchy && join(this.#dir(hierarchy), file);
  }

  #read(controller: Controller, file: string): string {
    return textOf(this.#path(controller, file));
  }

  #number(controller: Controller, file: string): number | null {
    const text = this.#read(controller, file).trim();
    return /^\d+$/.test(text) ? Number(text) : null;
  }
}

const makeParent = (controller: Controller): Hierarchy => {
  const hierarchy = hierarchies()[controller];
  if (!hierarchy) throw new Error(`this host has no cgroup controller '${controller}'`);
  mkdirSync(join(hierarchy.root, GROUP), { recursive: true });
  if (hierarchy.version === 2) enable(hierarchy.root, [controller]);
  return hierarchy;
};

const canMake = (controller: Controller): boolean => {
  try {
    accessSync(join(makeParent(controller).root, GROUP), constants.W_OK);
    return true;
  } catch {
    return false;
  }
};

/** A process takes a moment to die. */
const END_TRIES = 50;
const END_MS = 2;

/** Throws EBUSY when it must be. */
const isRemoved = (dir: string, must: boolean): boolean => {
  try {
    removeCgroup(dir);
    return true;
  } catch (error) {
    if (must || errnoOf(error) !== 'EBUSY') throw error;
    return false;
  }
};

const endProcess = (pid: number): void => {
  try {
    if (pid > 0) process.kill(pid, 'SIGKILL');
  } catch {
    // Gone by itself.
  }
};

const failure = (error: unknown): ForkdError =>
  error instanceof ForkdError ? error : new ForkdError('CGROUP_FAILED', { reason: reasonOf(error) }, error);

const controllersOf = (change: LimitsChange): Controller[] =>
  (Object.keys(change) as (keyof ResourceLimits)[]).map((key) => OF[key]);

type Write = (dir: string, version: 1 | 2, value: number | null, disk: string | undefined) => void;

const WRITE: Record<keyof ResourceLimits, Write> = {
  cpus: (dir, version, cpus) => {
    const quota = cpus === null ? undefined : Math.round(cpus * PERIOD_US);
    if (version === 2) return writeFileSync(join(dir, 'cpu.max'), `${quota ?? 'max'} ${PERIOD_US}`);
    writeFileSync(join(dir, 'cpu.cfs_period_us'), String(PERIOD_US));
    writeFileSync(join(dir, 'cpu.cfs_quota_us'), String(quota ?? -1));
  },
  memoryMib: (dir, version, mib) => {
    const bytes = mib === null ? undefined : mib * MiB;
    if (version === 2) {
      writeFileSync(join(dir, 'memory.max'), String(bytes ?? 'max'));
      writeWhereItIs(join(dir, 'memory.swap.max'), bytes === undefined ? 'max' : '0');
      return;
    }
    // Memory and swap together are never less than memory alone: which is written first depends on the way it goes.
    const both = join(dir, 'memory.memsw.limit_in_bytes');
    const memory = join(dir, 'memory.limit_in_bytes');
    const rises = bytes === undefined || bytes > Number(textOf(memory));
    for (const file of rises ? [both, memory] : [memory, both]) {
      if (file === memory) writeFileSync(file, String(bytes ?? -1));
      else writeWhereItIs(file, String(bytes ?? -1));
    }
  },
  ioMibPerS: (dir, version, mib, disk) => {
    const device = disk === undefined ? undefined : wholeDevice(statSync(disk).dev);
    if (device === undefined) throw new Error('its disk is on no block device whose rate the kernel can limit');
    const rate = mib === null ? undefined : Math.round(mib * MiB);
    if (version === 2)
      return writeFileSync(join(dir, 'io.max'), `${device} rbps=${rate ?? 'max'} wbps=${rate ?? 'max'}`);
    for (const way of ['read', 'write'])
      writeFileSync(join(dir, `blkio.throttle.${way}_bps_device`), `${device} ${rate ?? 0}`);
  },
  pids: (dir, _version, pids) => writeFileSync(join(dir, 'pids.max'), String(pids ?? 'max')),
};

/** Swap is not accounted on every host. */
const writeWhereItIs = (path: string, value: string): void => {
  if (existsSync(path)) writeFileSync(path, value);
};

/** `major:minor` of the disk that a file system's device is, or is a partition of; undefined for one that the kernel makes up. */
const wholeDevice = (dev: number): string | undefined => {
  const number = `${(dev >> 8) & 0xfff}:${(dev & 0xff) | ((dev >> 12) & 0xfff00)}`;
  const dir = `/sys/dev/block/${number}`;
  if (!existsSync(dir)) return undefined;
  return existsSync(`${dir}/partition`) ? readFileSync(`${dir}/../dev`, 'utf8').trim() : number;
};

const textOf = (path: string | undefined): string => {
  try {
    return path === undefined ? '' : readFileSync(path, 'utf8');
  } catch {
    return '';
  }
};

const words = (path: string): string[] => textOf(path).trim().split(/\s+/);

/** The number in the line of `key` of a file of `key number` lines. */
const pick = (text: string, key: string): number | null => {
  const found = new RegExp(`^${key} (\\d+)$`, 'm').exec(text)?.[1];
  return found === undefined ? null : Number(found);
};

/** Of all disks. */
const sum = (text: string, pattern: RegExp): number =>
  [...text.matchAll(pattern)].reduce((all, [, number]) => all + Number(number), 0);

const scaled = (value: number | null, by: number): number | null => (value === null ? null : Math.round(value / by));

/** The group must be empty. */
export const removeCgroup = (dir: string): void => {
  try {
    rmdirSync(dir);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
  }
};

/** Longest from a child's group to its process: all groups of a fan-out are made before the first child starts. */
export const FAN_OUT_MS = 600_000;

/** When a group was made, ms since the epoch: a sandbox's id says so (contract/names.ts). Undefined for a name that is none. */
export const cgroupMadeAt = (dir: string): number | undefined => {
  const made = /^sb-([0-9a-f]+)-/.exec(basename(dir))?.[1];
  return made === undefined ? undefined : Number.parseInt(made, 16) * 1000;
};

let swept = false;

/** An engine that was killed leaves the groups of its VMs. Once for each process. */
const sweep = (): void => {
  if (swept) return;
  swept = true;
  for (const dir of emptyCgroups()) {
    try {
      if (Date.now() - (cgroupMadeAt(dir) ?? Number.POSITIVE_INFINITY) > FAN_OUT_MS) removeCgroup(dir);
    } catch {
      // Another's, or in use after all.
    }
  }
};

/** Groups of VMs that no longer run. */
export const emptyCgroups = (): string[] => {
  const parents = [...new Set(Object.values(hierarchies()).map(({ root }) => join(root, GROUP)))];
  return parents
    .filter((parent) => existsSync(parent))
    .flatMap((parent) =>
      readdirSync(parent, { withFileTypes: true })
        .filter((entry) => entry.isDirectory())
        .map((entry) => join(parent, entry.name)),
    )
    .filter((dir) => textOf(join(dir, 'cgroup.procs')).trim() === '');
};
