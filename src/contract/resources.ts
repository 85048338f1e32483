/** What a VM may use of this host. A limit that is absent is not set. */
import { limits } from './limits.js';

export interface ResourceLimits {
  /** Processors' worth of time: 0.5 is half of one. */
  cpus?: number;
  memoryMib?: number;
  /** MiB a second, read and written each. */
  ioMibPerS?: number;
  /** Processes and threads. */
  pids?: number;
}

/** A change while it runs: null lifts a limit, what is absent stays. */
export type LimitsChange = { [K in keyof ResourceLimits]?: number | null };

/** As programs are told of them: null for none. */
export interface LimitsBody {
  cpus: number | null;
  memory_limit_mib: number | null;
  io_mib_per_s: number | null;
  pids: number | null;
}

export const limitsBody = ({ cpus, memoryMib, ioMibPerS, pids }: ResourceLimits = {}): LimitsBody => ({
  cpus: cpus ?? null,
  memory_limit_mib: memoryMib ?? null,
  io_mib_per_s: ioMibPerS ?? null,
  pids: pids ?? null,
});

/** Absent keys stay absent: for a change, they say that nothing changes. */
export const limitsOfBody = (body: Partial<LimitsBody>): LimitsChange => ({
  ...(body.cpus === undefined ? {} : { cpus: body.cpus }),
  ...(body.memory_limit_mib === undefined ? {} : { memoryMib: body.memory_limit_mib }),
  ...(body.io_mib_per_s === undefined ? {} : { ioMibPerS: body.io_mib_per_s }),
  ...(body.pids === undefined ? {} : { pids: body.pids }),
});

/** What the kernel has counted. */
export interface ResourceUsage {
  cpu_ms: number | null;
  /** Periods of 100 ms in which it was stopped because its share was used up, and for how long in all. */
  cpu_throttled_periods: number | null;
  cpu_throttled_ms: number | null;
  /** From and to disk. */
  io_read_bytes: number | null;
  io_written_bytes: number | null;
  memory_bytes: number | null;
  /** Times that it was refused memory, and that the kernel ended a process for it. */
  memory_refused: number | null;
  memory_kills: number | null;
  pids: number | null;
  /** Times that it was refused a process or thread. */
  pids_refused: number | null;
}

/** What is told of a sandbox whose limits were changed, or asked for. */
export interface LimitReport {
  limits: LimitsBody;
  usage: ResourceUsage;
}

/** Least and most of each, and whether it is a whole number. */
export const RESOURCES = {
  cpus: { name: 'cpus', min: 0.01, max: limits.cpusMax, isWhole: false },
  memoryMib: { name: 'memory_limit_mib', min: 1, max: limits.memoryLimitMaxMib, isWhole: true },
  ioMibPerS: { name: 'io_mib_per_s', min: 0.01, max: limits.ioMaxMibPerS, isWhole: false },
  pids: { name: 'pids', min: limits.pidsMin, max: limits.pidsMax, isWhole: true },
} as const;

/** What is wrong with a limit, or undefined. */
export const resourceProblem = (what: keyof ResourceLimits, value: number): string | undefined => {
  const { name, min, max, isWhole } = RESOURCES[what];
  if (value >= min && value <= max && (!isWhole || Number.isInteger(value))) return undefined;
  return `${name} must be ${isWhole ? 'a whole number ' : ''}between ${min} and ${max}, not ${value}`;
};
