/** How long transfers wait, and how often they try again. */
export interface Patience {
  /** Attempts that may fail one after the other. */
  tries: number;
  /** Before the second attempt; doubled for each further one. */
  backoffMs: number;
  backoffMaxMs: number;
  connectMs: number;
  headersMs: number;
  /** Between two parts of a body. */
  idleMs: number;
  /** A body that brings less than `rateMin` bytes a second for this long is given up. */
  slowMs: number;
  rateMin: number;
}
