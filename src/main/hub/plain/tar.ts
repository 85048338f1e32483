/** Headers of the archives in packs of versions 1 and 2: GNU's form, and files with holes among them (type S of the same form). */
import { number, text, verifyHeader } from '../tar-reader.js';
import type { TarReader } from '../tar-reader.js';

export interface PlainHeader {
  name: string;
  /** In the archive. */
  size: number;
  /** Of a file with holes: how long it is, and where its bytes belong. */
  sparse?: SparseHead;
}

interface SparseHead {
  size: number;
  runs: [begin: number, bytes: number][];
  /** More runs follow in blocks of their own. */
  goesOn: boolean;
}

/** Throws an Error unless it is the header of a plain file, with holes or without. */
export const decodePlainHeader = (block: Buffer): PlainHeader => {
  verifyHeader(block);
  const name = text(block.subarray(0, 100));
  const size = number(block.subarray(124, 136));
  const type = block[156] as number;
  const isGnu = block.toString('latin1', 257, 265) === 'ustar  \0';
  if (isGnu && type === SPARSE) return { name, size, sparse: sparseHead(block) };
  if (type !== PLAIN && type !== PLAIN_BEFORE) throw new Error(`entry ${JSON.stringify(name)} is not a plain file`);
  // There the GNU form has times.
  if (!isGnu && text(block.subarray(345, 500)) !== '')
    throw new Error(`the name of entry ${JSON.stringify(name)} is too long`);
  return { name, size };
};

const PLAIN = 0x30;
const PLAIN_BEFORE = 0;
const SPARSE = 0x53;
/** Of one run: two numbers of 12 bytes. */
const RUN_BYTES = 24;
const RUNS_IN_HEADER = 4;
const RUNS_IN_BLOCK = 21;
/** Held in memory; of a file system with blocks of 4 KiB the worst case of 8 GiB. */
const RUNS_MAX = 1024 * 1024;
/** Blocks without a run would go on for ever, outside of any size that the manifest names. */
const BLOCKS_MAX = RUNS_MAX / RUNS_IN_BLOCK;

const sparseHead = (block: Buffer): SparseHead => ({
  size: number(block.subarray(483, 495)),
  runs: runsOf(block, 386, RUNS_IN_HEADER),
  goesOn: block[482] !== 0,
});

const runsOf = (block: Buffer, from: number, count: number): [number, number][] => {
  const runs: [number, number][] = [];
  for (let at = from; at < from + count * RUN_BYTES && block[at] !== 0; at += RUN_BYTES)
    runs.push([number(block.subarray(at, at + 12)), number(block.subarray(at + 12, at + 24))]);
  return runs;
};

/** What an entry holds: the bytes in the archive, the file's length, and where they belong in it, ascending. Throws an Error. */
export const placesOf = async (
  tar: TarReader<PlainHeader>,
  { size, sparse }: PlainHeader,
): Promise<{ bytes: number; runs: [number, number][] }> => {
  if (!sparse) return { bytes: size, runs: [[0, size]] };
  const runs = [...sparse.runs];
  let { goesOn } = sparse;
  for (let blocks = 0; goesOn; blocks++) {
    if (blocks > BLOCKS_MAX) throw new Error('a file has too many holes');
    const block = await tar.block();
    runs.push(...runsOf(block, 0, RUNS_IN_BLOCK));
    goesOn = block[504] !== 0;
  }
  let end = 0;
  let stored = 0;
  for (const [begin, bytes] of runs) {
    if (begin < end) throw new Error('a run of a file with holes is wrong');
    end = begin + bytes;
    stored += bytes;
  }
  if (end > sparse.size || stored !== size) throw new Error('a run of a file with holes is wrong');
  return { bytes: sparse.size, runs: runs.filter(([, bytes]) => bytes > 0) };
};
