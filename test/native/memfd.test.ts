import { readFileSync } from 'node:fs';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { native } from '../../src/native/binding.js';
import { fdCount } from './process.js';

const test = suite('native memfd');
const MIB = 1 << 20;

test('has the size it is given, and is empty at first', () => {
  const fd = native.memfdCreate('size');
  native.fdResize(fd, 3 * MIB + 5);
  assert.equal(native.fdSize(fd), { bytes: 3 * MIB + 5, allocated: 0 });
  native.fdClose(fd);
});

test('reads back what was written, and stops at the end of the file', () => {
  const fd = native.memfdCreate('rw');
  assert.is(native.fdWrite(fd, Uint8Array.of(1, 2, 3, 4), 10), 4);
  const into = new Uint8Array(8);
  assert.is(native.fdRead(fd, into, 12), 2);
  assert.equal([...into], [3, 4, 0, 0, 0, 0, 0, 0]);
  assert.is(native.fdRead(fd, into, 100), 0);
  assert.is(native.fdWrite(fd, new Uint8Array(0), 0), 0);
  native.fdClose(fd);
});

test('a write seal refuses writes, a grow seal refuses growth', () => {
  const fd = native.memfdCreate('sealed');
  native.fdWrite(fd, Uint8Array.of(7), 0);
  native.memfdSeal(fd, ['write', 'grow', 'shrink']);
  assert.throws(
    () => native.fdWrite(fd, Uint8Array.of(8), 0),
    (error: NodeJS.ErrnoException) => error.code === 'EPERM' && error.syscall === 'pwrite',
  );
  assert.throws(
    () => native.fdResize(fd, 10),
    (error: NodeJS.ErrnoException) => error.code === 'EPERM' && error.syscall === 'ftruncate',
  );
  assert.throws(() => native.memfdSeal(fd, ['wrote']), /seals: expected/);
  native.fdClose(fd);
});

test('punching gives the memory back and leaves zeros', () => {
  const fd = native.memfdCreate('punch');
  native.fdWrite(fd, new Uint8Array(MIB).fill(9), 0);
  assert.is(native.fdSize(fd).allocated, MIB);
  native.memfdPunch(fd, 0, MIB / 2);
  assert.equal(native.fdSize(fd), { bytes: MIB, allocated: MIB / 2 });
  const into = new Uint8Array(2);
  native.fdRead(fd, into, MIB / 2 - 1);
  assert.equal([...into], [0, 9]);
  native.fdClose(fd);
});

test('huge pages are written through a mapping', () => {
  const free = Number(/HugePages_Free:\s+(\d+)/.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1] ?? 0);
  const fd = native.memfdCreate('huge', true);
  native.fdResize(fd, 4 * MIB);
  if (free < 2) {
    // None on this machine: what can be checked is that it fails as an error, not as SIGBUS.
    assert.throws(() => native.fdWrite(fd, Uint8Array.of(1), 0), /ENOMEM.*mmap/);
  } else {
    // Across the border of two huge pages.
    native.fdWrite(fd, Uint8Array.of(1, 2, 3, 4), 2 * MIB - 2);
    const into = new Uint8Array(6);
    native.fdRead(fd, into, 2 * MIB - 3);
    assert.equal([...into], [0, 1, 2, 3, 4, 0]);
  }
  assert.throws(() => native.fdWrite(fd, Uint8Array.of(1), 4 * MIB), /EINVAL.*pwrite/);
  native.fdClose(fd);
});

test('a duplicate is another number for the same file', () => {
  const fd = native.memfdCreate('dup');
  const copy = native.fdDup(fd);
  assert.is.not(copy, fd);
  native.fdWrite(fd, Uint8Array.of(5), 0);
  native.fdClose(fd);
  assert.is(native.fdSize(copy).bytes, 1);
  native.fdClose(copy);
});

test('no descriptor is left after 1000 rounds', () => {
  const round = () => {
    const fd = native.memfdCreate('round');
    const [left, right] = native.socketPair('stream');
    native.sendFds(left, Uint8Array.of(1), [fd], 1000);
    const { fds } = native.recvFds(right, 1, 1, 1000);
    for (const open of [fd, left, right, ...fds, native.pidfdOpen(process.pid)]) native.fdClose(open);
  };
  round();
  const before = fdCount();
  for (let i = 0; i < 1000; i++) round();
  assert.is(fdCount(), before);
});

test.run();
