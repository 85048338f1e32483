import { execFileSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { ftruncateSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import { inChild } from './in-child.js';
import {
  contents,
  ENTRY,
  ENTRY_BYTES,
  edited,
  entryAt,
  Files,
  HEADER,
  HEADER_BYTES,
  imageOf,
  mixedImage,
  PAGE_BYTES,
  packed,
  pageOf,
  PAGES_PER_CHUNK,
  raw,
  sign,
} from './layers.js';

const test = suite<{ files: Files }>('native layer file');
const ROOT = 'ab'.repeat(32);

test.before.each((context) => {
  context.files = new Files();
});
test.after.each(({ files }) => files.remove());

/** The reason that the file is refused for: by sourceOpen as by layerOpen. */
function reasonOf(files: Files, file: Uint8Array): string {
  const fd = files.file(file);
  for (const open of [() => native.layerOpen(fd), () => native.sourceOpen([fd])]) {
    try {
      open();
    } catch (error) {
      const { code, reason } = error as { code: string; reason: string };
      assert.is(code, 'LAYER_DAMAGED');
      if (open.toString().includes('sourceOpen')) return reason;
    }
  }
  return 'not refused';
}

test('BLAKE3 is BLAKE3', () => {
  // From the official test vectors: input byte i is i % 251.
  const input = (bytes: number) => Uint8Array.from({ length: bytes }, (_, i) => i % 251);
  assert.is(native.blake3(input(0)), 'af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262');
  assert.is(native.blake3(input(1024)), '42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7');
  assert.is(native.blake3(input(102400)), 'bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085');
});

for (const [name, options] of Object.entries({ raw, packed })) {
  test(`a base equals its image: ${name}`, ({ files }) => {
    const image = mixedImage(40);
    const layer = files.file(Buffer.alloc(9 * CHUNK_BYTES, 7)); // what was in the file goes away
    const written = native.layerWriteImage(files.memory(image), layer, options);
    assert.ok(imageOf([layer]).equals(image));
    const { root, entries, dataBytes, fileBytes, ...rest } = native.layerOpen(layer);
    assert.equal({ root, entries, dataBytes, fileBytes }, written);
    assert.is(contents(layer).length, fileBytes);
    assert.is(rest.parentRoot, null);
    assert.is(rest.imageBytes, image.length);
    assert.is(rest.zeroPages, 0);
    assert.is(rest.uniqueFrames, entries);
    const dataPages = Array.from({ length: image.length / PAGE_BYTES }, (_, page) =>
      image.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES),
    ).filter((page) => !page.equals(Buffer.alloc(PAGE_BYTES))).length;
    assert.is(rest.dataPages, dataPages);
    assert.is(entries, 32);
    if (options === raw) assert.is(dataBytes, dataPages * PAGE_BYTES);
    else assert.ok(dataBytes < 0.7 * dataPages * PAGE_BYTES);
  });
}

test('the source of an image may be a file, with holes', ({ files }) => {
  const source = files.file();
  ftruncateSync(source, 100 * CHUNK_BYTES);
  native.fdWrite(source, Buffer.alloc(PAGE_BYTES, 1), 3 * CHUNK_BYTES + PAGE_BYTES);
  native.fdWrite(source, Uint8Array.of(1), 99 * CHUNK_BYTES + CHUNK_BYTES - 1);
  const layer = files.file();
  assert.is(native.layerWriteImage(source, layer, raw).dataBytes, 2 * PAGE_BYTES);
  assert.ok(imageOf([layer]).equals(contents(source)));
});

test('the last chunk may be short, an image may be zero', ({ files }) => {
  const image = mixedImage(4).subarray(0, 3 * CHUNK_BYTES + PAGE_BYTES);
  image.fill(5, 3 * CHUNK_BYTES);
  const layer = files.file();
  native.layerWriteImage(files.memory(image), layer, raw);
  assert.ok(imageOf([layer]).equals(image));

  const nothing = native.layerWriteImage(files.memory(CHUNK_BYTES), layer, raw);
  assert.is(nothing.entries, 0);
  assert.is(nothing.fileBytes, HEADER_BYTES);
  assert.ok(imageOf([layer]).equals(Buffer.alloc(CHUNK_BYTES)));
});

for (const [name, options] of Object.entries({ raw, packed })) {
  test(`equal frames are stored once: ${name}`, ({ files }) => {
    const image = Buffer.alloc(20 * CHUNK_BYTES);
    for (let chunk = 0; chunk < 20; chunk += 2) {
      // The same pages at different places of their chunks are the same frame.
      pageOf(1).copy(image, chunk * CHUNK_BYTES + ((chunk / 2) % 3) * PAGE_BYTES);
      pageOf(2).copy(image, chunk * CHUNK_BYTES + (((chunk / 2) % 3) + 1) * PAGE_BYTES);
    }
    pageOf(3).copy(image, 19 * CHUNK_BYTES);
    const layer = files.file();
    native.layerWriteImage(files.memory(image), layer, options);
    const info = native.layerOpen(layer);
    assert.is(info.entries, 11);
    assert.is(info.uniqueFrames, 2);
    assert.is(info.sharedFrames, 9);
    assert.ok(info.dataBytes <= 3 * PAGE_BYTES);
    assert.ok(imageOf([layer]).equals(image));
    const handle = native.sourceOpen([layer]);
    assert.is(native.sourceInfo(handle).storedBytes, info.dataBytes);
    native.sourceClose(handle);
  });
}

test('an image over a parent owns every page', ({ files }) => {
  const layer = files.file();
  const image = mixedImage(10);
  native.layerWriteImage(files.memory(image), layer, { ...raw, parentRoot: ROOT });
  const info = native.layerOpen(layer);
  assert.is(info.parentRoot, ROOT);
  assert.is(info.dataPages + info.zeroPages, 10 * PAGES_PER_CHUNK);
  assert.throws(() => native.sourceOpen([layer]), /is not a base/);
});

test('the same image makes the same root, any other another', ({ files }) => {
  const write = (image: Buffer, options = raw) =>
    native.layerWriteImage(files.memory(image), files.file(), options).root;
  const image = mixedImage(10);
  const root = write(image);
  assert.is(write(image), root);
  assert.is.not(write(edited(image, (copy) => copy.writeUInt8(1, 4 * CHUNK_BYTES))), root);
  assert.is.not(write(Buffer.concat([image, Buffer.alloc(CHUNK_BYTES)])), root);
});

test('arguments that make no sense are refused before the target is touched', ({ files }) => {
  const image = files.memory(CHUNK_BYTES);
  const target = files.file(Uint8Array.of(1));
  const refused = (run: () => unknown, pattern: RegExp) => {
    assert.throws(run, pattern);
    assert.is(contents(target).length, 1);
  };
  refused(() => native.layerWriteImage(image, target, { ...raw, zstdLevel: 20 }), /zstdLevel/);
  refused(() => native.layerWriteImage(image, target, { ...raw, chunkBytes: 4096 }), /chunkBytes/);
  refused(() => native.layerWriteImage(image, target, { ...raw, parentRoot: 'ab' }), /parentRoot/);
  refused(() => native.layerWriteImage(image, target, { ...raw, parentRoot: '00'.repeat(32) }), /parentRoot/);
  refused(() => native.layerWriteImage(files.memory(PAGE_BYTES + 1), target, raw), /EINVAL.*image size/);
  refused(() => native.layerWriteImage(files.memory(0), target, raw), /EINVAL.*image size/);
  refused(() => native.layerWriteImage(target, target, raw), /EINVAL/);
  assert.throws(() => native.layerWriteImage(image, image, raw), /EINVAL.*ftruncate/);
});

test('a file that is cut anywhere is refused', ({ files }) => {
  const layer = files.file();
  native.layerWriteImage(files.memory(mixedImage(20)), layer, packed);
  const file = contents(layer);
  assert.is(reasonOf(files, file), 'not refused');
  const lengths = [
    0,
    7,
    8,
    112,
    HEADER_BYTES - 1,
    HEADER_BYTES,
    entryAt(file, 0),
    entryAt(file, 3) + 5,
    file.length - 1,
  ];
  for (let length = 0; length < file.length; length += 4999) lengths.push(length);
  for (const length of lengths) {
    const expected = length < 8 ? 'not a layer file' : 'truncated';
    assert.is(reasonOf(files, file.subarray(0, length)), expected, `cut at ${length}`);
  }
  assert.is(reasonOf(files, Buffer.concat([file, Buffer.alloc(1)])), 'longer than its header says');
});

test('every flipped bit of header and index is refused', ({ files }) => {
  const layer = files.file();
  native.layerWriteImage(files.memory(mixedImage(5)), layer, { ...packed, parentRoot: ROOT });
  const file = contents(layer);
  const target = files.file(file);
  const positions = Array.from({ length: 120 }, (_, i) => i);
  for (let i = HEADER.padding; i < HEADER_BYTES; i += 97) positions.push(i);
  for (let i = entryAt(file, 0); i < file.length; i++) positions.push(i);
  for (const position of positions) {
    const flipped = Buffer.from([file[position]! ^ (1 << (position % 8))]);
    native.fdWrite(target, flipped, position);
    assert.throws(
      () => native.layerOpen(target),
      (error: { code: string }) => error.code === 'LAYER_DAMAGED',
    );
    native.fdWrite(target, file.subarray(position, position + 1), position);
  }
  native.layerOpen(target);
});

test('what is flipped is named', ({ files }) => {
  const layer = files.file();
  native.layerWriteImage(files.memory(mixedImage(20)), layer, packed);
  const file = contents(layer);
  const flipped = (position: number) =>
    reasonOf(
      files,
      edited(file, (copy) => (copy[position]! ^= 0x10)),
    );
  assert.is(flipped(HEADER.magic), 'not a layer file');
  assert.is(flipped(HEADER.version), 'layer version 18 is not known');
  assert.is(flipped(HEADER.chunkBytes), 'chunk size is not 16384');
  assert.is(flipped(HEADER.imageBytes + 4), 'root hash does not match');
  assert.is(flipped(HEADER.imageBytes), 'image size is not in whole pages up to 256 GiB');
  assert.is(flipped(HEADER.indexOffset), 'index does not follow the data');
  assert.is(flipped(HEADER.dataBytes), 'index does not follow the data');
  assert.is(flipped(HEADER.dataBytes + 6), 'more data than the image has bytes');
  assert.is(flipped(HEADER.entryCount), 'longer than its header says'); // 16 becomes 0
  assert.is(flipped(HEADER.entryCount + 4), 'more entries than the image has chunks');
  assert.is(flipped(HEADER.parentRoot), 'root hash does not match');
  assert.is(flipped(HEADER.root), 'root hash does not match');
  assert.is(flipped(HEADER.padding + 1000), 'header padding is not zero');
  for (const field of Object.values(ENTRY)) assert.is(flipped(entryAt(file, 2) + field), 'root hash does not match');
});

test('a flipped bit in a frame is refused when the chunk is read, raw and compressed; other chunks can be read', ({
  files,
}) => {
  for (const options of [raw, packed]) {
    const layer = files.file();
    native.layerWriteImage(files.memory(mixedImage(20)), layer, options);
    const file = contents(layer);
    const reasons = new Set<string>();
    for (let entry = 0; entry < 16; entry++) {
      const at = entryAt(file, entry);
      const chunk = file.readUInt32LE(at + ENTRY.chunk);
      const offset = Number(file.readBigUInt64LE(at + ENTRY.offset));
      const position = offset + ((entry * 977) % file.readUInt32LE(at + ENTRY.storedBytes));
      const handle = native.sourceOpen([files.file(edited(file, (copy) => (copy[position]! ^= 1 << (entry % 8))))]);
      for (let i = 0; i < 20; i++) {
        const read = () => native.sourceRead(handle, i, new Uint8Array(CHUNK_BYTES));
        if (i !== chunk) read();
        else {
          assert.throws(read, (error: { code: string; reason: string; layer: number }) => {
            reasons.add(error.reason);
            return error.code === 'LAYER_DAMAGED' && error.layer === 0;
          });
        }
      }
      native.sourceClose(handle);
    }
    if (options === raw) assert.equal([...reasons], ['hash mismatch']);
    else assert.ok([...reasons].every((reason) => /^(hash mismatch|compressed frame is damaged)$/.test(reason)));
  }
});

test('a file that is cut while it is open is an error, not a crash', ({ files }) => {
  const layer = files.file();
  native.layerWriteImage(files.memory(mixedImage(20)), layer, raw);
  const handle = native.sourceOpen([layer]);
  ftruncateSync(layer, HEADER_BYTES + 100);
  assert.throws(() => native.sourceRead(handle, 3, new Uint8Array(CHUNK_BYTES)), /truncated/);
  native.sourceClose(handle);
});

test('an index that is signed but makes no sense is refused by what is wrong with it', ({ files }) => {
  const layer = files.file();
  const image = mixedImage(20).subarray(0, 18 * CHUNK_BYTES + PAGE_BYTES);
  randomFillSync(image, 0, CHUNK_BYTES); // will not compress
  native.layerWriteImage(files.memory(image), layer, packed);
  const file = contents(layer);
  const entries = (file.length - entryAt(file, 0)) / ENTRY_BYTES;
  const codecs = Array.from({ length: entries }, (_, i) => file.readUInt32LE(entryAt(file, i) + ENTRY.codec));
  const rawEntry = codecs.indexOf(0);
  const zstdEntry = codecs.indexOf(1);
  const reason = (entry: number, edit: (copy: Buffer, at: number) => void) =>
    reasonOf(
      files,
      edited(file, (copy) => {
        edit(copy, entryAt(copy, entry));
        sign(copy);
      }),
    );
  const u64 = (field: number, value: bigint) => (copy: Buffer, at: number) => copy.writeBigUInt64LE(value, at + field);
  const u32 = (field: number, value: number) => (copy: Buffer, at: number) => copy.writeUInt32LE(value, at + field);
  const u16 = (field: number, value: number) => (copy: Buffer, at: number) => copy.writeUInt16LE(value, at + field);

  assert.ok(rawEntry >= 0 && zstdEntry >= 0);
  assert.is(reason(3, u64(ENTRY.offset, 0n)), 'entry 3 points outside the data');
  assert.is(reason(3, u64(ENTRY.offset, 4095n)), 'entry 3 points outside the data');
  assert.is(reason(3, u64(ENTRY.offset, 2n ** 64n - 1n)), 'entry 3 points outside the data');
  assert.is(reason(3, u64(ENTRY.offset, BigInt(entryAt(file, 0) - 1))), 'entry 3 points outside the data');
  assert.is(reason(2, u32(ENTRY.chunk, 0)), 'entry 2 is not in the order of chunks');
  assert.is(reason(2, u32(ENTRY.chunk, 0xffffffff)), 'entry 2 is past the end of the image');
  assert.is(reason(entries - 1, u16(ENTRY.dataMask, 0x3)), `entry ${entries - 1} owns pages past the end of the image`);
  assert.is(reason(2, u16(ENTRY.zeroMask, 0xf)), 'entry 2 has pages that are both data and zero');
  assert.is(reason(2, u16(ENTRY.dataMask, 0)), 'entry 2 owns no page');
  assert.is(reason(rawEntry, u32(ENTRY.storedBytes, 1)), `entry ${rawEntry} has a frame of the wrong size`);
  assert.is(reason(zstdEntry, u32(ENTRY.storedBytes, 0)), `entry ${zstdEntry} has a frame of the wrong size`);
  assert.is(reason(zstdEntry, u32(ENTRY.storedBytes, 0x7fffffff)), `entry ${zstdEntry} has a frame of the wrong size`);
  assert.is(reason(zstdEntry, u32(ENTRY.codec, 2)), `entry ${zstdEntry} has an unknown codec`);
  const zeroOnly = (copy: Buffer, at: number) => {
    copy.writeUInt16LE(0, at + ENTRY.dataMask);
    copy.writeUInt16LE(1, at + ENTRY.zeroMask);
  };
  assert.is(reason(2, zeroOnly), 'entry 2 has a frame without pages');
});

test('something that is no file is refused', ({ files }) => {
  const [left, right] = native.socketPair('stream');
  files.keep(left);
  files.keep(right);
  assert.throws(() => native.layerOpen(left), /EINVAL.*fstat/);
  assert.throws(() => native.sourceOpen([left]), /EINVAL.*fstat/);
  assert.throws(() => native.layerOpen(files.keep(openSync('/dev/zero', 'r'))), /EINVAL/);
  assert.throws(() => native.sourceOpen([]), /no layers/);
});

test('a file system that fills up is an error and leaves an empty file', ({ files }) => {
  const small = join(files.folder, 'small');
  mkdirSync(small);
  try {
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'small', small], { stdio: 'ignore' });
  } catch {
    return; // not root
  }
  try {
    // 160 chunks need more; 2 more than fits the index and the header count too.
    for (const chunks of [800, 160]) {
      const target = files.keep(openSync(join(small, `layer-${chunks}`), 'w+'));
      const image = Buffer.alloc(chunks * CHUNK_BYTES);
      for (let page = 0; page < image.length / PAGE_BYTES; page++) image.writeUInt32LE(page + 1, page * PAGE_BYTES);
      assert.throws(
        () => native.layerWriteImage(files.memory(image), target, raw),
        (error: { code: string }) => error.code === 'ENOSPC',
      );
      assert.is(contents(target).length, 0);
    }
  } finally {
    execFileSync('umount', ['-l', small]);
  }
});

test('thousands of mutated files: an error each or the same image, no crash, no hang, no great memory', async () => {
  const { opened, refused, peakMib } = (await inChild('layer-fuzz', 120_000)) as Record<string, number>;
  assert.ok(refused! > 2000, `${refused} refused`);
  assert.ok(opened! > 50, `${opened} opened`);
  assert.ok(peakMib! < 700, `${peakMib} MiB`);
});

test.run();
