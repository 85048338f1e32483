/** A point in time that several waits share, so that ten waits of a second each cannot take ten seconds. */
export class Deadline {
  readonly #at: number;

  constructor(readonly totalMs: number) {
    this.#at = performance.now() + totalMs;
  }

  get leftMs(): number {
    return Math.max(0, Math.ceil(this.#at - performance.now()));
  }

  get passed(): boolean {
    return performance.now() >= this.#at;
  }

  /** Asked when a wait of `leftMs` was in vain. */
  get isOver(): boolean {
    return true;
  }
}
