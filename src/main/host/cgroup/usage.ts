/** What a group has used. */
import { existsSync } from 'node:fs';
import type { ResourceUsage } from '../../../contract/resources.js';
import type { GroupFiles } from './files.js';
import { hierarchies } from './hierarchy.js';
import { pick } from './read.js';

export const usageOf = (files: GroupFiles): ResourceUsage => {
  const cpu = files.read('cpu', 'cpu.stat');
  const { cpu: cpuHierarchy, memory: memoryHierarchy } = hierarchies();
  const cpuOld = cpuHierarchy?.version === 1;
  const memoryOld = memoryHierarchy?.version === 1;
  const memory = files.read('memory', memoryOld ? 'memory.oom_control' : 'memory.events');
  const { read, written } = ioOf(files) ?? { read: null, written: null };
  return {
    // v1 counts it in a hierarchy of its own.
    cpu_ms: cpuOld ? null : scaled(pick(cpu, 'usage_usec'), 1000),
    cpu_throttled_periods: pick(cpu, 'nr_throttled'),
    cpu_throttled_ms: cpuOld ? scaled(pick(cpu, 'throttled_time'), 1e6) : scaled(pick(cpu, 'throttled_usec'), 1000),
    io_read_bytes: read,
    io_written_bytes: written,
    memory_bytes: files.number('memory', memoryOld ? 'memory.usage_in_bytes' : 'memory.current'),
    memory_refused: memoryOld ? files.number('memory', 'memory.failcnt') : pick(memory, 'max'),
    memory_kills: pick(memory, 'oom_kill'),
    pids: files.number('pids', 'pids.current'),
    pids_refused: pick(files.read('pids', 'pids.events'), 'max'),
  };
};

/** Bytes. Undefined where it has no group for io. */
export const ioOf = (files: GroupFiles): { read: number; written: number } | undefined => {
  const { io: hierarchy } = hierarchies();
  if (!hierarchy || !existsSync(files.dir(hierarchy))) return undefined;
  const isOld = hierarchy.version === 1;
  const text = files.read('io', isOld ? 'blkio.throttle.io_service_bytes' : 'io.stat');
  const [read, written] = isOld ? [/ Read (\d+)$/gm, / Write (\d+)$/gm] : [/ rbytes=(\d+)/g, / wbytes=(\d+)/g];
  return { read: sum(text, read), written: sum(text, written) };
};

/** Of all disks. */
const sum = (text: string, pattern: RegExp): number =>
  [...text.matchAll(pattern)].reduce((all, [, number]) => all + Number(number), 0);

const scaled = (value: number | null, by: number): number | null => (value === null ? null : Math.round(value / by));
