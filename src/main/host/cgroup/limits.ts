/** What a group may use: each limit is written to files of one controller, which v1 and v2 call differently. */
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { LimitsChange, ResourceLimits } from '../../../contract/resources.js';
import { MiB } from '../../../contract/units.js';
import { writeWhereItIs } from './files.js';
import type { Controller } from './hierarchy.js';
import { textOf } from './read.js';

/** Microseconds over which a share of the processors is counted: the kernel's own default. */
const PERIOD_US = 100_000;

export const CONTROLLER_OF: Record<keyof ResourceLimits, Controller> = {
  cpus: 'cpu',
  memoryMib: 'memory',
  ioMibPerS: 'io',
  pids: 'pids',
};

export const controllersOf = (change: LimitsChange): Controller[] =>
  (Object.keys(change) as (keyof ResourceLimits)[]).map((key) => CONTROLLER_OF[key]);

type Write = (dir: string, version: 1 | 2, value: number | null, disk: string | undefined) => void;

/** Null lifts it. */
export const WRITE_LIMIT: Record<keyof ResourceLimits, Write> = {
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

/** `major:minor` of the disk that a file system's device is, or is a partition of; undefined for one that the kernel makes up. */
const wholeDevice = (dev: number): string | undefined => {
  const number = `${(dev >> 8) & 0xfff}:${(dev & 0xff) | ((dev >> 12) & 0xfff00)}`;
  const dir = `/sys/dev/block/${number}`;
  if (!existsSync(dir)) return undefined;
  return existsSync(`${dir}/partition`) ? readFileSync(`${dir}/../dev`, 'utf8').trim() : number;
};
