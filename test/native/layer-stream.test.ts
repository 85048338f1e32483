/** Images that arrive in parts and become layers: the same as those that are written at once, and differences to a parent. */
import * as assert from 'uvu/assert';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import { suite } from '../support/suite.js';
import { contents, Files, imageOf, mixedImage, PAGE_BYTES, pageOf, raw } from './layers.js';

const test = suite<{ files: Files }>('native layer stream');

test.before.each((context) => {
  context.files = new Files();
});
test.after.each(({ files }) => files.remove());

/** In parts of so many chunks; those whose first chunk is in `left` never come. */
const streamed = (target: number, image: Buffer, chunks: number, below: object = {}, left: number[] = []) => {
  const stream = native.layerStreamOpen(target, image.length, { zstdLevel: 0, ...below });
  for (let chunk = 0; chunk * CHUNK_BYTES < image.length; chunk += chunks) {
    const begin = chunk * CHUNK_BYTES;
    if (!left.includes(chunk))
      native.layerStreamAppend(stream, chunk, image.subarray(begin, begin + chunks * CHUNK_BYTES));
  }
  const written = native.layerStreamFinish(stream);
  assert.not(native.layerStreamClose(stream), 'it is none any more');
  return written;
};

test('in parts of any size it is the layer that an image makes', ({ files }) => {
  // Its last chunk has one page.
  const image = Buffer.concat([mixedImage(20), pageOf(9)]);
  const whole = files.file();
  const { root } = native.layerWriteImage(files.memory(image), whole, raw);
  for (const chunks of [1, 3, 100]) {
    const target = files.file();
    assert.is(streamed(target, image, chunks).root, root, `${chunks} chunks`);
    assert.ok(contents(target).equals(contents(whole)));
  }
});

test('with a parent it has what differs, and zeros where they hide something', ({ files }) => {
  const image = mixedImage(20);
  const base = files.file();
  const { root: parentRoot } = native.layerWriteImage(files.memory(image), base, raw);
  const parent = native.sourceOpen([base]);
  const changed = Buffer.from(image);
  const page = (chunk: number, i: number) => chunk * CHUNK_BYTES + i * PAGE_BYTES;
  pageOf(77).copy(changed, page(3, 1));
  changed.fill(0, page(5, 0), page(5, 4));
  pageOf(78).copy(changed, page(19, 3));
  const diff = files.file();
  const written = streamed(diff, changed, 4, { parentRoot, parent });
  const { dataPages, zeroPages } = native.layerOpen(diff);
  const hidden = [0, 1, 2, 3].filter((i) => image.subarray(page(5, i), page(5, i + 1)).some((byte) => byte !== 0));
  assert.equal([dataPages, zeroPages, written.entries > 0], [2, hidden.length, true]);
  assert.ok(imageOf([base, diff]).equals(changed));
  // What never comes is as it was.
  const partial = files.file();
  streamed(partial, changed, 4, { parentRoot, parent }, [0]);
  const expected = Buffer.concat([image.subarray(0, page(4, 0)), changed.subarray(page(4, 0))]);
  assert.ok(imageOf([base, partial]).equals(expected));
  native.sourceClose(parent);
});

test('what does not fit is refused, and half a layer is none', ({ files }) => {
  const target = files.file();
  const open = (bytes: number, more: object = {}) => native.layerStreamOpen(target, bytes, { zstdLevel: 0, ...more });
  assert.throws(() => open(PAGE_BYTES + 1), /EINVAL.*image size/);
  assert.throws(() => open(0), /EINVAL.*image size/);
  assert.throws(() => open(PAGE_BYTES, { parentRoot: 'ab'.repeat(32) }), /parent/);
  assert.throws(() => open(PAGE_BYTES, { parentRoot: 'ab'.repeat(32), parent: 999_999 }), /parent/);
  const base = files.file();
  const { root: parentRoot } = native.layerWriteImage(files.memory(mixedImage(4)), base, raw);
  const parent = native.sourceOpen([base]);
  assert.throws(() => open(5 * CHUNK_BYTES, { parentRoot, parent }), /EINVAL.*image size/);
  native.sourceClose(parent);

  const stream = open(4 * CHUNK_BYTES);
  const append = (chunk: number, bytes: number) => native.layerStreamAppend(stream, chunk, Buffer.alloc(bytes, 1));
  append(1, CHUNK_BYTES);
  for (const [chunk, bytes] of [
    [0, CHUNK_BYTES],
    [1, CHUNK_BYTES],
    [2, PAGE_BYTES],
    [2, 3 * CHUNK_BYTES],
    [4, CHUNK_BYTES],
    [9, CHUNK_BYTES],
  ] as const)
    assert.throws(() => append(chunk, bytes), /chunk/, `${bytes} at ${chunk}`);
  assert.throws(() => native.layerStreamAppend(999_999, 2, Buffer.alloc(CHUNK_BYTES)), /handle/);
  assert.throws(() => native.layerStreamFinish(999_999), /handle/);
  assert.ok(native.layerStreamClose(stream));
  assert.is(contents(target).length, 0);
});

test.run();
