/**
 * How many requests one address may make: a bucket of a second's worth that fills again as time passes, so that a burst is
 * answered and a flood is not.
 */
import { ForkdError } from '../../contract/errors.js';

interface Bucket {
  left: number;
  /** Milliseconds, of performance.now(). */
  at: number;
}

/** Addresses that are remembered; those whose buckets are full again say nothing. */
const ADDRESSES_MAX = 10_000;

export class Rate {
  readonly #buckets = new Map<string, Bucket>();

  /** Requests a second; 0 for any number. */
  constructor(
    readonly max: number,
    readonly now: () => number = () => performance.now(),
  ) {}

  /** Counts one. Throws RATE_LIMITED, with the seconds to wait in its details. */
  require(address: string): void {
    if (this.max === 0) return;
    const now = this.now();
    const bucket = this.#buckets.get(address) ?? this.#remember(address, now);
    bucket.left = Math.min(this.max, bucket.left + ((now - bucket.at) / 1000) * this.max);
    bucket.at = now;
    if (bucket.left < 1)
      throw new ForkdError('RATE_LIMITED', { max: this.max, wait: Math.ceil((1 - bucket.left) / this.max) });
    bucket.left--;
  }

  #remember(address: string, now: number): Bucket {
    if (this.#buckets.size >= ADDRESSES_MAX) {
      for (const [one, { left, at }] of this.#buckets)
        if (left + ((now - at) / 1000) * this.max >= this.max) this.#buckets.delete(one);
      // All of them are at it: then the oldest starts anew.
      const [oldest] = this.#buckets.keys();
      if (this.#buckets.size >= ADDRESSES_MAX && oldest !== undefined) this.#buckets.delete(oldest);
    }
    const bucket = { left: this.max, at: now };
    this.#buckets.set(address, bucket);
    return bucket;
  }
}
