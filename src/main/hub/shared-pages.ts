/**
 * The pages of a layer that are also in the link's root disk: what a guest has read of its disk lies in its memory as it lies on the disk.
 * The layer is packed with zeros in their place, and `memory.pages` says where they are: runs of [page of the layer, page of the disk, count].
 */
const PAGE_BYTES = 4096;
const RUN_BYTES = 12;

export const runsToBytes = (runs: Uint32Array): Buffer => {
  const bytes = Buffer.alloc(runs.length * 4);
  runs.forEach((value, i) => void bytes.writeUInt32LE(value, i * 4));
  return bytes;
};

/** Throws an Error when it has no whole number of runs. What they say is checked when they are used. */
export const bytesToRuns = (bytes: Buffer): Uint32Array => {
  if (bytes.length % RUN_BYTES !== 0) throw new Error('its list of shared pages is cut short');
  return Uint32Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readUInt32LE(i * 4));
};

/** Zeros, in a part of the layer that begins at `offset`, what the runs name. */
export const withoutPages = (part: Buffer, offset: number, runs: Uint32Array): void => {
  const end = offset + part.length;
  for (let i = firstEndingAfter(offset, runs); i < runs.length; i += 3) {
    const [page, , count] = runs.subarray(i, i + 3) as unknown as [number, number, number];
    const begin = page * PAGE_BYTES;
    if (begin >= end) return;
    part.fill(0, Math.max(begin - offset, 0), Math.min(begin + count * PAGE_BYTES, end) - offset);
  }
};

const firstEndingAfter = (offset: number, runs: Uint32Array): number => {
  let [low, high] = [0, runs.length / 3];
  while (low < high) {
    const middle = (low + high) >> 1;
    const [page, , count] = runs.subarray(middle * 3, middle * 3 + 3) as unknown as [number, number, number];
    if ((page + count) * PAGE_BYTES > offset) high = middle;
    else low = middle + 1;
  }
  return low * 3;
};
