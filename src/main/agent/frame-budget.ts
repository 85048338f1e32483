/** How many frames of one guest are taken in a second: who sends more is not read for a while, and waits in its own port. */
import { limits } from '../../contract/limits.js';

const RATE_PER_MS = limits.agentFramesPerSecond / 1000;

export class FrameBudget {
  #left: number = limits.agentFramesPerSecond;
  #at = performance.now();

  spend(cost: number): void {
    this.#left -= cost;
  }

  /** Milliseconds until there is something left again; 0 when there is. */
  pauseMs(): number {
    if (this.#left > 0) return 0;
    const now = performance.now();
    this.#left = Math.min(limits.agentFramesPerSecond, this.#left + (now - this.#at) * RATE_PER_MS);
    this.#at = now;
    return this.#left > 0 ? 0 : Math.ceil(-this.#left / RATE_PER_MS) + 1;
  }
}
