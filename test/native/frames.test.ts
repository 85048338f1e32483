/** What packs are read with: hashes of what goes through memory, in the order of the content, whichever thread has it. */
import { randomBytes } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PAGE, putImage } from '../support/layers.js';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { fileDigest } from '../../src/main/file-digest.js';
import { FRAME_BYTES, FrameFile, type Segment, writeFrames } from '../../src/main/hub/frames.js';
import { Store } from '../../src/main/store/store.js';
import { native } from '../../src/native/binding.js';

const test = suite<{ folder: string }>('native frames');

test.before((context) => {
  context.folder = mkdtempSync(join(tmpdir(), 'forkd-frames-'));
});
test.after(({ folder }) => rmSync(folder, { recursive: true }));

test('a file has the hash of its content, whatever its size', async ({ folder }) => {
  for (const bytes of [0, 1, 2 ** 20 - 1, 2 ** 20, 2 ** 20 + 1, 3 * 2 ** 20]) {
    const content = randomBytes(bytes);
    const path = join(folder, 'file');
    writeFileSync(path, content);
    assert.equal(await fileDigest(path), { blake3: native.blake3(content), bytes });
  }
});

test('parts of the content are hashed in their order by many threads, and zeros become holes', async ({ folder }) => {
  const disks = [randomBytes(7 * FRAME_BYTES + 5), Buffer.alloc(9 * FRAME_BYTES), randomBytes(300)] as const;
  // Zeros in the middle, and data around them.
  randomBytes(1000).copy(disks[1], 100);
  randomBytes(1000).copy(disks[1], 8 * FRAME_BYTES);
  const front = randomBytes(2 * FRAME_BYTES + 77);
  const content = Buffer.concat([front, ...disks]);
  const fd = openSync(join(folder, 'pack'), 'wx+');
  writeSync(fd, await writeFrames([content], fd), 0, undefined, native.fdSize(fd).bytes);
  const frames = FrameFile.of(fd);
  const out = openSync(join(folder, 'out'), 'wx+');
  native.fdResize(out, disks[1].length);
  const begins = disks.map((_, i) => front.length + disks.slice(0, i).reduce((sum, { length }) => sum + length, 0));
  const hashed = BigInt64Array.from(
    disks.flatMap(({ length }, i) => [begins[i] as number, length]),
    BigInt,
  );
  const all = BigInt64Array.from([0, content.length, -1, 0, begins[1] as number, disks[1].length, out, 0], BigInt);
  const aside = Buffer.alloc(content.length);
  for (const threads of [1, 7]) {
    const progress = new BigInt64Array(new SharedArrayBuffer(16));
    const split = frames.frameAt(front.length);
    const list = Uint32Array.from(frames.frames);
    const digests = await native.framesRead(
      fd,
      list,
      all,
      aside,
      split,
      hashed,
      threads,
      progress,
      -1,
      0,
      new Uint8Array(),
      -1,
    );
    assert.equal(
      digests,
      disks.map((disk) => native.blake3(disk)),
    );
    assert.ok(aside.equals(content));
  }
  assert.ok(readFileSync(join(folder, 'out')).equals(disks[1]));
  const { size, blocks } = statSync(join(folder, 'out'));
  assert.ok(blocks * 512 < size / 4, `${blocks} blocks of ${size} bytes`);
  for (const one of [fd, out]) closeSync(one);
});

test('chunks are held to their hashes as they are written, if they are whole and right; the others are read back', async ({
  folder,
}) => {
  const store = new Store(join(folder, 'store'));
  // Four chunks, one behind the other: three whole ones, and one with a single page.
  const pages = Object.fromEntries(Array.from({ length: 13 }, (_, page) => [page, randomBytes(PAGE)]));
  putImage(store, 'known', pages);
  const content = readFileSync(store.manifest('known').memory);
  const dataBegin = 4096;
  // Of the second chunk, on its way.
  content[dataBegin + CHUNK_BYTES + 5] = (content[dataBegin + CHUNK_BYTES + 5] as number) ^ 1;
  const packed = openSync(join(folder, 'known-pack'), 'wx+');
  writeSync(packed, await writeFrames([content], packed), 0, undefined, native.fdSize(packed).bytes);
  const layer = openSync(store.manifest('known').memory, 'r+');
  const source = native.sourceOpen([layer]);
  const known = new Uint8Array(native.sourceInfo(source).chunks);
  // The third comes in two parts.
  const cut = dataBegin + 2 * CHUNK_BYTES + 100;
  const parts: Segment[] = [
    [dataBegin, cut - dataBegin, layer, dataBegin],
    [cut, dataBegin + 3 * CHUNK_BYTES + PAGE - cut, layer, cut],
  ];
  await FrameFile.of(packed).place(parts, Buffer.alloc(0), 0, [], {}, { check: { source, layer, known } });
  assert.equal([...known.subarray(0, 5)], [1, 0, 0, 1, 0]);
  const verify = async (given: Uint8Array) =>
    (await native.sourceVerify(source, 10, 2, given)).problems.map(({ chunk }) => chunk);
  assert.equal(await verify(known), [1]);
  assert.equal(await verify(new Uint8Array()), [1]);
  // What is said to be known is not looked at.
  assert.equal(await verify(known.fill(1)), []);
  assert.throws(() => native.sourceVerify(source, 10, 2, new Uint8Array(3)), /known/);
  native.sourceClose(source);
  for (const one of [packed, layer]) closeSync(one);
});

test.run();
