/** Limits of a VM, as every command that makes or changes one takes them. */
import { RESOURCES, type ResourceLimits, resourceProblem } from '../contract/resources.js';
import type { Options } from './options.js';

export const limitOptions: [string, string][] = [
  ['--cpus <X>', "Processors' worth of time of each: 0.5 is half of one (cgroup; root)"],
  ['--memory-limit-mib <N>', 'Memory limit of each, MiB (cgroup; root)'],
  ['--io-mib-per-s <X>', 'MiB a second of each, read and written (cgroup; root)'],
  ['--pids <N>', 'Processes and threads on this host of each, 256 if not given (cgroup; root)'],
];

const FLAGS: Record<keyof ResourceLimits, string> = {
  cpus: 'cpus',
  memoryMib: 'memory-limit-mib',
  ioMibPerS: 'io-mib-per-s',
  pids: 'pids',
};

/** Where `none` is allowed it lifts a limit. */
export const readLimits = <None extends null | never = never>(
  options: Options,
  none?: { none: None },
): { [K in keyof ResourceLimits]?: number | None } => {
  const read: { [K in keyof ResourceLimits]?: number | None } = {};
  for (const key of Object.keys(RESOURCES) as (keyof ResourceLimits)[]) {
    const text = options.string(FLAGS[key]);
    if (text === undefined) continue;
    if (none && text === 'none') {
      read[key] = none.none;
      continue;
    }
    const value = /^\d{1,15}(\.\d{1,6})?$/.test(text) ? Number(text) : Number.NaN;
    const problem = Number.isNaN(value) ? `'${text}' is not a number` : resourceProblem(key, value);
    if (problem !== undefined) throw options.wrong(`--${FLAGS[key]}`, problem);
    read[key] = value;
  }
  return read;
};
