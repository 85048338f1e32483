/**
 * The group of one VM: `<hierarchy>/forkd/<name>`, in cgroup v2 for the controllers that it has, else in the hierarchies of v1. A
 * VM is born in it, or writes itself into it before it becomes QEMU, so nothing of it runs unlimited.
 */
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ForkdError, reasonOf } from '../../../contract/errors.js';
import type { HeldKind } from '../../../contract/held.js';
import { limits as maxima } from '../../../contract/limits.js';
import type { LimitsChange, ResourceLimits, ResourceUsage } from '../../../contract/resources.js';
import type { JoinOrder } from '../../../contract/task.js';
import { GroupFiles } from './files.js';
import { exceededLimit, metLimits } from './held.js';
import { CONTROLLERS, type Controller, type Hierarchy, hierarchies } from './hierarchy.js';
import { IoRate } from './io-rate.js';
import { sweep } from './leftovers.js';
import { CONTROLLER_OF, controllersOf, WRITE_LIMIT } from './limits.js';
import { textOf } from './read.js';
import { removeGroup } from './removal.js';
import { canMake } from './subtree-control.js';
import { usageOf } from './usage.js';

/**
 * Memory is accounted to the group that a page was first used in, so a VM joins as soon as it has answered; what one VM starts of
 * threads is limited always. The other controllers come when they are asked for: each costs every VM some 0.1 ms.
 */
const ALWAYS: Controller[] = ['memory', 'pids'];

export class Cgroup {
  readonly #files: GroupFiles;
  readonly #ioRate: IoRate;
  #limits: ResourceLimits = {};

  private constructor(
    readonly name: string,
    /** Where its disk lies: io is limited for that device. */
    readonly disk: string | undefined,
  ) {
    this.#files = new GroupFiles(name);
    this.#ioRate = new IoRate(this.#files);
  }

  /** Throws CGROUP_FAILED when a limit cannot be set. Undefined when none is asked for and this host, or this user, can have no groups. */
  static create(name: string, wanted: ResourceLimits, disk?: string): Cgroup | undefined {
    sweep();
    const cgroup = new Cgroup(name, disk);
    const needed = controllersOf(wanted);
    try {
      for (const controller of new Set([...ALWAYS, ...needed])) {
        try {
          cgroup.#files.make(controller);
        } catch (error) {
          if (needed.includes(controller)) throw error;
        }
      }
      if (cgroup.#files.dirs.length === 0) return undefined;
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
    return this.#files.dirs.map((dir) => join(dir, 'cgroup.procs'));
  }

  /** The work of a worker (tasks/join.ts). */
  joining(pid: number): JoinOrder {
    const dirs = this.#always.map((hierarchy) => this.#files.dir(hierarchy));
    const limit = this.#files.path('pids', 'pids.max');
    return { dirs, files: limit === undefined ? [] : [[limit, String(maxima.vmTasks)]], pid };
  }

  /** The same for a copy that shares neither this VM's limits nor its end: where this process itself is. */
  get outside(): string[] {
    const own = textOf('/proc/self/cgroup').split('\n');
    const found = CONTROLLERS.flatMap((controller) => {
      const hierarchy = hierarchies()[controller];
      if (!hierarchy || !existsSync(this.#files.dir(hierarchy))) return [];
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
        const controller = CONTROLLER_OF[key];
        const hierarchy = hierarchies()[controller];
        const dir = hierarchy && this.#files.dir(hierarchy);
        if (!dir || !existsSync(dir)) {
          if (!(key in told)) continue;
          throw new Error(hierarchy ? `it has no group in ${hierarchy.root}` : `no controller '${controller}' here`);
        }
        WRITE_LIMIT[key](dir, hierarchy.version, value, this.disk);
        if (key === 'ioMibPerS') this.#ioRate.restart();
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
        if (hierarchy && existsSync(this.#files.dir(hierarchy))) continue;
        writeFileSync(join(this.#files.make(controller), 'cgroup.procs'), String(pid));
      }
    } catch (error) {
      throw failure(error);
    }
    this.change(change);
  }

  usage(): ResourceUsage {
    return usageOf(this.#files);
  }

  /** The limit that it was ended for. */
  exceeded(): string | undefined {
    return exceededLimit(this.usage(), this.#limits);
  }

  /** Limits that it has met, and how often. */
  met(): [HeldKind, number][] {
    return metLimits(this.#files, this.#limits, this.#ioRate);
  }

  /** Its VM has been reaped. */
  remove(): void {
    removeGroup(this.#files);
  }

  /** Where every VM has a group, on this host and as this user; their parent is there then. */
  get #always(): Hierarchy[] {
    return [...new Set(ALWAYS.filter((controller) => canMake(controller)).flatMap((c) => hierarchies()[c] ?? []))];
  }
}

const failure = (error: unknown): ForkdError =>
  error instanceof ForkdError ? error : new ForkdError('CGROUP_FAILED', { reason: reasonOf(error) }, error);
