/**
 * Mutated layer files, with and without a fitting root: each must be opened, or refused with LAYER_DAMAGED; every chunk of one that
 * opens is read or refused in the same way. Prints counts and the peak of memory.
 */
import { ftruncateSync } from 'node:fs';
import { CHUNK_BYTES } from '../../../src/contract/page-map.js';
import { native } from '../../../src/native/binding.js';
import { contents, ENTRY_BYTES, entryAt, Files, HEADER, mixedImage, packed, raw, sign } from '../layers.js';
import { random } from '../../support/random.js';

const ROUNDS = 4000;
const READ_MAX = 40;
const files = new Files();
const below = random(Number(process.argv[2] ?? 7));
const interesting = [0, 1, 2, 0xff, 0xfff, 0x1000, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff];

const originals = [raw, packed].map((options) => {
  const layer = files.file();
  native.layerWriteImage(files.memory(mixedImage(12)), layer, options);
  return contents(layer);
});

/** Changes bytes or numbers of header or index, or of the frames. */
function mutate(file: Buffer): void {
  const index = entryAt(file, 0);
  for (let times = 1 + below(4); times > 0; times--) {
    const at = [
      () => below(HEADER.padding),
      () => index + below(file.length - index),
      () => index + below((file.length - index) / ENTRY_BYTES) * ENTRY_BYTES + 4 * below(6),
      () => below(file.length),
    ][below(4)]!();
    const kind = below(3);
    if (kind === 0) file[at]! ^= 1 << below(8);
    else if (kind === 1) file[at] = below(256);
    else if (at + 4 <= file.length) file.writeUInt32LE(interesting[below(interesting.length)]!, at);
  }
}

const isDamage = (error: unknown) => (error as { code?: string }).code === 'LAYER_DAMAGED';
const into = new Uint8Array(CHUNK_BYTES);
const target = files.file();
let opened = 0;
let refused = 0;
let chunksRead = 0;
let chunksRefused = 0;
for (let round = 0; round < ROUNDS; round++) {
  const file = Buffer.from(originals[round % 2]!);
  mutate(file);
  if (round % 3 !== 0) {
    // As one who makes a file on purpose: magic, version and root are right.
    originals[0]!.copy(file, 0, 0, 16);
    sign(file);
  }
  ftruncateSync(target, 0);
  native.fdWrite(target, file, 0);
  // A file may also claim to be large and be so, in holes.
  if (below(20) === 0) ftruncateSync(target, below(2 ** 32) * 64);
  try {
    native.layerOpen(target);
    const handle = native.sourceOpen([target]);
    opened++;
    const { chunks } = native.sourceInfo(handle);
    for (let chunk = 0; chunk < Math.min(chunks, READ_MAX); chunk++) {
      try {
        native.sourceRead(handle, chunk, into);
        chunksRead++;
      } catch (error) {
        if (!isDamage(error)) throw error;
        chunksRefused++;
      }
    }
    native.sourceClose(handle);
  } catch (error) {
    if (!isDamage(error)) throw error;
    refused++;
  }
}
files.remove();
const peakMib = process.resourceUsage().maxRSS / 1024;
console.log(JSON.stringify({ opened, refused, chunksRead, chunksRefused, peakMib }));
