/** What packs are read with: hashes of what goes through memory, in the order of the content, whichever thread has it. */
import { randomBytes } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { fileDigest } from '../../src/main/file-digest.js';
import { FRAME_BYTES, FrameFile, writeFrames } from '../../src/main/hub/frames.js';
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
    const digests = await native.framesRead(fd, list, all, aside, split, hashed, threads, progress);
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

test.run();
