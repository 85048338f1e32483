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

/** The parts of the layer that the runs name: [offset, bytes]. */
export const sharedParts = (runs: Uint32Array): [number, number][] =>
  Array.from({ length: runs.length / 3 }, (_, i) => [
    (runs[i * 3] as number) * PAGE_BYTES,
    (runs[i * 3 + 2] as number) * PAGE_BYTES,
  ]);

/**
 * Where the shared pages of a disk belong in the layer: [offset in the disk, bytes, offset in the layer]. Throws an Error when a run lies outside, or before
 * the one before it.
 */
export const sharedPlaces = (runs: Uint32Array, layerBytes: number, diskBytes: number): [number, number, number][] => {
  const [layerPages, diskPages] = [layerBytes, diskBytes].map((bytes) => Math.floor(bytes / PAGE_BYTES));
  const places: [number, number, number][] = [];
  let end = 0;
  for (let i = 0; i < runs.length; i += 3) {
    const [page, from, count] = [...runs.subarray(i, i + 3)] as [number, number, number];
    if (page < end || count < 1 || page + count > (layerPages as number) || from + count > (diskPages as number))
      throw new Error('a run of shared pages is wrong');
    end = page + count;
    places.push([from * PAGE_BYTES, count * PAGE_BYTES, page * PAGE_BYTES]);
  }
  return places;
};
