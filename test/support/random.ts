/** Chance that can be repeated: a seed, and what is made of bytes with it. */

/** Gives whole numbers from 0 to below what it is asked with, below 2^32 (mulberry32). */
export type Below = (below: number) => number;

export const random = (seed: number): Below => {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
};

/** Some bytes changed, or the end cut off, or a part of it left out or there twice. */
export const damaged = (bytes: Buffer, next: Below): Buffer => {
  const copy = Buffer.from(bytes);
  const kind = next(8);
  if (kind === 0) return copy.subarray(0, next(copy.length));
  if (kind === 1) return Buffer.concat([copy.subarray(0, next(copy.length)), copy.subarray(next(copy.length))]);
  for (let i = next(6); i >= 0; i--) copy[next(copy.length)] = next(256);
  return copy;
};

/** An archive with a few bytes of the header at `at` changed, and its sum put right: what comes behind the first check. */
export const forgedAt = (archive: Buffer, at: number, next: Below): Buffer => {
  const copy = Buffer.from(archive);
  for (let i = next(4); i >= 0; i--) copy[at + next(512)] = next(256);
  let sum = 8 * 0x20;
  for (let i = 0; i < 512; i++) if (i < 148 || i >= 156) sum += copy[at + i] as number;
  copy.write(`${sum.toString(8).padStart(6, '0')}\0 `, at + 148, 'latin1');
  return copy;
};
