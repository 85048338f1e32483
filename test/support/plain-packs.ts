/** Archives taken to pieces: what hostile packs of versions 1 and 2 are made of. */
import { compress } from 'zstd-napi';

const BLOCK = 512;
const END = Buffer.alloc(2 * BLOCK);

/** Entries, each with its headers as they are. */
export type Sample = { header: Buffer; body: Buffer }[];

export const sampleOf = (archive: Buffer): Sample => {
  const sample: Sample = [];
  for (let at = 0; archive[at] !== 0; ) {
    let headers = 1;
    // A file with holes says it when more of them follow: in its header, then in each further block.
    if (archive[at + 156] === 0x53 && archive[at + 482] !== 0)
      do headers++;
      while (archive[at + (headers - 1) * BLOCK + 504] !== 0);
    const size = Number.parseInt(archive.toString('latin1', at + 124, at + 135), 8);
    const begin = at + headers * BLOCK;
    sample.push({ header: archive.subarray(at, begin), body: archive.subarray(begin, begin + size) });
    at = begin + Math.ceil(size / BLOCK) * BLOCK;
  }
  return sample;
};

/** Puts size and checksum of a header right; `sized` false leaves its size. */
export const settled = ({ header, body }: Sample[number], sized = true): void => {
  if (sized) header.write(`${body.length.toString(8).padStart(11, '0')}\0`, 124);
  header.fill(0x20, 148, 156);
  const sum = header.subarray(0, BLOCK).reduce((all, byte) => all + byte, 0);
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
};

/** A pack of these entries. */
export const sampleTo = (sample: Sample): Buffer =>
  compress(
    Buffer.concat([
      ...sample.flatMap(({ header, body }) => [header, body, Buffer.alloc((BLOCK - (body.length % BLOCK)) % BLOCK)]),
      END,
    ]),
  );
