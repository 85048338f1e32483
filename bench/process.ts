/** What processes use, from /proc. */
import { readFileSync } from 'node:fs';

/** Linux counts in hundredths of a second. */
const TICKS_PER_S = 100;
const MIB = 2 ** 20;

/** Processor time so far of all of them, seconds. */
export const cpuSeconds = (pids: number[]): number =>
  pids.reduce((sum, pid) => {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8');
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ');
    return sum + (Number(fields[11]) + Number(fields[12])) / TICKS_PER_S;
  }, 0);

/** How much this process grows at most, looked at now and then. */
export class Resident {
  readonly #before = process.memoryUsage.rss();
  #most = this.#before;
  #looks = 0;

  readonly look = (): void => {
    if (this.#looks++ % 64 === 0) this.#most = Math.max(this.#most, process.memoryUsage.rss());
  };

  growthMib(): number {
    this.#most = Math.max(this.#most, process.memoryUsage.rss());
    return (this.#most - this.#before) / MIB;
  }
}
