/** Who a process is: a pid alone may have been given to another process since. */
import { readFileSync } from 'node:fs';

/** Fields of /proc/PID/stat (proc(5)) from the third on, or undefined when the process is gone. */
const statOf = (pid: number): string[] | undefined => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The command name may hold spaces and parentheses, so fields are counted from the last ')'.
    return stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  } catch {
    return undefined;
  }
};

/** Start time of a process in clock ticks since boot (field 22), or undefined when it is gone. */
export const startTime = (pid: number): number | undefined => {
  const fields = statOf(pid);
  // A zombie has ended: nothing runs and it answers nothing.
  return !fields || fields[0] === 'Z' ? undefined : Number(fields[19]);
};

/** Whether it was begun then or later, in clock ticks since boot, and has ended, and nobody has reaped it. */
export const isUnreaped = (pid: number, since: number): boolean => {
  const fields = statOf(pid);
  return fields?.[0] === 'Z' && Number(fields[19]) >= since;
};

/** The name of a process, at most 15 characters of its program's; undefined when it is gone. */
export const nameOf = (pid: number): string | undefined => {
  try {
    return readFileSync(`/proc/${pid}/comm`, 'utf8').trimEnd();
  } catch {
    return undefined;
  }
};

/** How many threads it has (field 20); undefined when it is gone or has ended. */
export const threadsOf = (pid: number): number | undefined => {
  const fields = statOf(pid);
  return !fields || fields[0] === 'Z' ? undefined : Number(fields[17]);
};

/** Now, as start times are told: clock ticks since boot, of which Linux tells programs 100 a second on every machine. */
export const ticksNow = (): number => Math.floor(Number(readFileSync('/proc/uptime', 'utf8').split(' ')[0]) * 100);

/** Pid of its parent (field 4), or undefined when it is gone. */
export const parentOf = (pid: number): number | undefined => {
  const fields = statOf(pid);
  return fields && Number(fields[1]);
};

/** A process, for good: the pid alone may be given to another, and ticks since boot come again after the next. */
export interface ProcessIdentity {
  pid: number;
  start_time: number;
  boot_id: string;
}

/** Undefined when it is gone. */
export const identify = (pid: number): ProcessIdentity | undefined => {
  const start = startTime(pid);
  return start === undefined ? undefined : { pid, start_time: start, boot_id: bootId() };
};

export const isRunning = ({ pid, start_time, boot_id }: ProcessIdentity): boolean =>
  boot_id === bootId() && isAlive(pid, start_time);

const bootId = (): string => readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim();

export const isAlive = (pid: number, start: number): boolean => startTime(pid) === start;
