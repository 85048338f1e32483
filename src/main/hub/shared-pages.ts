/**
 * The pages of a layer that are also in the link's disks: what a guest has read of its root disk lies in its memory as it lies on the disk, and so does
 * the kernel, as it was loaded. The layer is packed with zeros in their place, and `memory.pages` says where they are: runs of [page of the layer, page of
 * the disks, count], where the whole pages of the disks are counted through.
 */
const PAGE_BYTES = 4096;
const RUN_BYTES = 12;

/** Little endian, as the processor has them. */
export const runsToBytes = (runs: Uint32Array): Buffer => Buffer.from(runs.slice().buffer);

/** Throws an Error when it has no whole number of runs. What they say is checked when they are used. */
export const bytesToRuns = (bytes: Buffer): Uint32Array => {
  if (bytes.length % RUN_BYTES !== 0) throw new Error('its list of shared pages is cut short');
  // A copy, since what it came in need not be aligned.
  return new Uint32Array(Uint8Array.from(bytes).buffer);
};

/** The parts of the layer that the runs name: [offset, bytes]. */
export const sharedParts = (runs: Uint32Array): [number, number][] =>
  Array.from({ length: runs.length / 3 }, (_, i) => [
    (runs[i * 3] as number) * PAGE_BYTES,
    (runs[i * 3 + 2] as number) * PAGE_BYTES,
  ]);

/** Where shared pages are and belong. */
export interface SharedPlace {
  /** Which of the disks, and where in it. */
  disk: number;
  from: number;
  bytes: number;
  /** Where in the layer. */
  offset: number;
}

/** Throws an Error when a run lies outside, or before the one before it. */
export const sharedPlaces = (runs: Uint32Array, layerBytes: number, diskBytes: number[]): SharedPlace[] => {
  const [layerPages, ...diskPages] = [layerBytes, ...diskBytes].map((bytes) => Math.floor(bytes / PAGE_BYTES));
  const places: SharedPlace[] = [];
  let end = 0;
  for (let i = 0; i < runs.length; i += 3) {
    const page = runs[i] as number;
    const count = runs[i + 2] as number;
    if (page < end || count < 1 || page + count > (layerPages as number)) throw new Error(WRONG_RUN);
    end = page + count;
    pushPlaces(places, page, runs[i + 1] as number, count, diskPages);
  }
  return places;
};

const WRONG_RUN = 'a run of shared pages is wrong';

/** A run may go on in the next disk. */
const pushPlaces = (places: SharedPlace[], page: number, from: number, count: number, diskPages: number[]): void => {
  let left = count;
  let at = from;
  for (let disk = 0; left > 0; disk++) {
    const pages = diskPages[disk];
    if (pages === undefined) throw new Error(WRONG_RUN);
    const taken = Math.min(left, pages - at);
    if (taken > 0) {
      const offset = (page + count - left) * PAGE_BYTES;
      places.push({ disk, from: at * PAGE_BYTES, bytes: taken * PAGE_BYTES, offset });
      left -= taken;
    }
    at = Math.max(0, at - pages);
  }
};
