/** What a VM has had of the processors: tells one that is slow, because it gets none, from one that stands still. */
import { readdirSync, readFileSync } from 'node:fs';

export interface ProcessorTime {
  ranMs: number;
  /** Ready to run, while others ran. */
  waitedMs: number;
}

/** Of all its threads that live, proc_pid_schedstat(5). Zero where the kernel does not tell, and of a process that is gone. */
export const processorTime = (pid: number): ProcessorTime => {
  const sum = { ranMs: 0, waitedMs: 0 };
  try {
    for (const thread of readdirSync(`/proc/${pid}/task`)) {
      const [ranNs = 0, waitedNs = 0] = readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8')
        .split(' ')
        .map(Number);
      sum.ranMs += ranNs / 1e6;
      sum.waitedMs += waitedNs / 1e6;
    }
  } catch {
    // A thread has ended meanwhile, or there is nothing to read.
  }
  return sum;
};

/** What came between, in words. */
export const since = (before: ProcessorTime, pid: number): string => {
  const now = processorTime(pid);
  const secs = (ms: number) => (Math.max(ms, 0) / 1000).toFixed(1);
  return `its VM ran for ${secs(now.ranMs - before.ranMs)} s of that, and waited ${secs(now.waitedMs - before.waitedMs)} s for a processor`;
};
