/** What a figure was measured on. A figure without it cannot be compared with any other. */
import { execFileSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { cpus, release, totalmem } from 'node:os';
import { findQemu } from '../src/main/vmm/find.js';

export interface HostFacts {
  cpu: string;
  cores: number;
  memory_gib: number;
  kernel: string;
  qemu: string;
  node: string;
  revision: string;
}

export const hostFacts = async (): Promise<HostFacts> => ({
  cpu: cpus()[0]?.model ?? 'unknown',
  cores: cpus().length,
  memory_gib: Math.round(totalmem() / 2 ** 30),
  kernel: release(),
  qemu: (await findQemu()).version,
  node: process.version,
  revision: revision(),
});

/** Short commit, with `+` when the tree has changes; `unknown` outside a repository. */
const revision = (): string => {
  const git = (...args: string[]) =>
    execFileSync('git', args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  try {
    return git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain', '-uno') === '' ? '' : '+');
  } catch {
    return 'unknown';
  }
};

/** Proportional set size, KiB: private pages, and each shared page divided by the number of its sharers (proc(5), smaps_rollup). */
export const pssKib = (pid: number): number =>
  Number(/^Pss:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8'))?.[1] ?? 0);

/** Processor time that the threads of a process have used, ms (schedstat: nanoseconds, where stat has ticks of 10 ms). */
export const cpuMs = (pid: number): number =>
  readdirSync(`/proc/${pid}/task`)
    .map((tid) => Number(readFileSync(`/proc/${pid}/task/${tid}/schedstat`, 'utf8').split(' ')[0]))
    .reduce((sum, ns) => sum + ns / 1e6, 0);
