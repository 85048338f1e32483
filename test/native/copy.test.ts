import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { native } from '../../src/native/binding.js';

const test = suite('native copySparse');
const KIB = 1024;
const MIB = 1024 * KIB;

function contents(fd: number): Buffer {
  const bytes = Buffer.alloc(native.fdSize(fd).bytes);
  native.fdRead(fd, bytes, 0);
  return bytes;
}

function equal(left: number, right: number): boolean {
  return contents(left).equals(contents(right));
}

test('the copy is equal, and holes and zero pages take no room', () => {
  const from = native.memfdCreate('from');
  const to = native.memfdCreate('to');
  native.fdResize(from, 16 * MIB + 100);
  native.fdWrite(from, new Uint8Array(3 * MIB).fill(1), MIB); // longer than the buffer
  native.fdWrite(from, new Uint8Array(2 * MIB), 8 * MIB); // zeros that do take room in the source
  native.fdWrite(from, Uint8Array.of(1), 9 * MIB + 4095); // the last byte of a page
  native.fdWrite(from, Uint8Array.of(2), 16 * MIB + 99); // the last byte of a file that ends inside a page

  assert.is(native.copySparse(from, to), 3 * MIB + 4 * KIB + 100);
  assert.ok(equal(from, to));
  assert.is(native.fdSize(to).bytes, 16 * MIB + 100);
  assert.is(native.fdSize(to).allocated, 3 * MIB + 8 * KIB);
  native.fdClose(from);
  native.fdClose(to);
});

test('random pages survive', () => {
  const from = native.memfdCreate('from');
  const to = native.memfdCreate('to');
  native.fdResize(from, 5 * MIB);
  for (let i = 0; i < 300; i++) {
    const length = 1 + Math.floor(Math.random() * 9000);
    const offset = Math.floor(Math.random() * (5 * MIB - length));
    native.fdWrite(from, new Uint8Array(length).fill(i % 3), offset); // every third is zeros
  }
  native.copySparse(from, to);
  assert.ok(equal(from, to));
  native.fdClose(from);
  native.fdClose(to);
});

test('nothing older shows through the holes', () => {
  const from = native.memfdCreate('from');
  const to = native.memfdCreate('to');
  native.fdResize(from, MIB);
  native.fdWrite(to, new Uint8Array(2 * MIB).fill(9), 0);
  assert.is(native.copySparse(from, to), 0);
  assert.equal(native.fdSize(to), { bytes: MIB, allocated: 0 });
  assert.ok(equal(from, to));
  native.fdClose(from);
  native.fdClose(to);
});

test('a copy onto itself is refused before it destroys anything', () => {
  const fd = native.memfdCreate('self');
  native.fdWrite(fd, Uint8Array.of(1), 0);
  const copy = native.fdDup(fd);
  assert.throws(() => native.copySparse(fd, copy), /EINVAL/);
  assert.is(native.fdSize(fd).bytes, 1);
  native.fdClose(fd);
  native.fdClose(copy);
});

test.run();
