/** How long a parent is waited for: a limit on standing still, and not on being slow, since on a busy host all that it does takes its time. */
import { Deadline } from '../deadline.js';
import { processorTime } from './processor-time.js';

/** A guest that has not answered, and neither ran nor wanted to, for so long, will not. */
const STILL_MS = 30_000;
/** Of a processor: an idle guest takes a tenth of this. */
const STILL_SHARE = 0.02;

export class Patience extends Deadline {
  #wanted: number;

  constructor(
    totalMs: number,
    readonly pid: number,
  ) {
    super(totalMs);
    this.#wanted = wantedMs(pid);
  }

  override get leftMs(): number {
    return Math.min(super.leftMs, STILL_MS);
  }

  override get isOver(): boolean {
    const before = this.#wanted;
    this.#wanted = wantedMs(this.pid);
    return this.passed || this.#wanted - before < STILL_MS * STILL_SHARE;
  }
}

const wantedMs = (pid: number): number => {
  const { ranMs, waitedMs } = processorTime(pid);
  return ranMs + waitedMs;
};
