/**
 * What a fault server counts, in an array that it shares with JavaScript: the counters below, then a ring of the
 * latencies of the last faults, in nanoseconds from being read to being answered. src/native/fault_stats.h has the same order.
 */
export const FAULT_COUNTERS = [
  /** Faults that were read. */
  'faults',
  /** Chunks that were read and put into the memory, whether for a fault or ahead of one; when copying, copies. */
  'filled',
  /** Bytes read from layers. */
  'readBytes',
  /** Faults answered with pages of zeros. */
  'zeroed',
  /** Faults on chunks that were there when their turn came. */
  'woken',
  /** Faults that waited for a chunk that another thread was filling. */
  'waited',
  /** Chunks that were filled although another thread had claimed them, because it took too long. */
  'takenOver',
  /** Hot forks that were followed. */
  'forks',
  /** Messages that memory was dropped, unmapped or moved. */
  'changes',
  /** Faults that could not be answered. */
  'failed',
  /** Faults that were. The next latency goes to this index of the ring, modulo its length. */
  'answered',
] as const;

export type FaultCounts = Record<(typeof FAULT_COUNTERS)[number], number>;

/** `latencies`: how many to keep. */
export const makeFaultStats = (latencies = 0): BigInt64Array =>
  new BigInt64Array(new SharedArrayBuffer((FAULT_COUNTERS.length + latencies) * BigInt64Array.BYTES_PER_ELEMENT));

export const faultCounts = (stats: BigInt64Array): FaultCounts =>
  Object.fromEntries(FAULT_COUNTERS.map((name, i) => [name, Number(Atomics.load(stats, i))])) as FaultCounts;

/** Those of the last faults, in no order. */
export const faultLatenciesNs = (stats: BigInt64Array): number[] => {
  const { answered } = faultCounts(stats);
  return [...stats.subarray(FAULT_COUNTERS.length)].slice(0, answered).map(Number);
};

/** Takes latencies out as they come, each once. Of more than the ring keeps between two looks, the oldest are lost. */
export class FaultTimes {
  #taken = 0;

  constructor(readonly stats: BigInt64Array) {}

  takeNs(): number[] {
    const ring = this.stats.length - FAULT_COUNTERS.length;
    const answered = Number(Atomics.load(this.stats, FAULT_COUNTERS.indexOf('answered')));
    const taken: number[] = [];
    this.#taken = Math.max(this.#taken, answered - ring);
    for (; this.#taken < answered; this.#taken++) {
      const ns = Atomics.exchange(this.stats, FAULT_COUNTERS.length + (this.#taken % ring), 0n);
      // Its thread has counted it and not written it yet.
      if (ns === 0n) break;
      taken.push(Number(ns));
    }
    return taken;
  }
}
