import { readFileSync } from 'node:fs';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import { closeCustody, lastArrived, makeCustody } from '../../src/contract/custody.js';
import { native } from '../../src/native/binding.js';
import { fdCount } from './process.js';

const test = suite('native SCM_RIGHTS');
const WAIT_MS = 2000;
const bytes = (text: string) => new TextEncoder().encode(text);
const text = (data: Uint8Array) => new TextDecoder().decode(data);

function closeAll(...fds: number[]): void {
  for (const fd of fds) native.fdClose(fd);
}

for (const type of ['stream', 'seqpacket'] as const) {
  test(`${type}: bytes and descriptors arrive together`, () => {
    const [left, right] = native.socketPair(type);
    const memfd = native.memfdCreate('passed');
    native.fdWrite(memfd, bytes('inside'), 0);
    native.sendFds(left, bytes('hello'), [memfd, left], WAIT_MS);
    const { data, fds } = native.recvFds(right, 100, 2, WAIT_MS);
    assert.is(text(data), 'hello');
    assert.is(fds.length, 2);
    const into = new Uint8Array(6);
    native.fdRead(fds[0] ?? -1, into, 0);
    assert.is(text(into), 'inside');
    closeAll(left, right, memfd, ...fds);
  });

  test(`${type}: more descriptors than asked for: all are closed, and it throws`, () => {
    const [left, right] = native.socketPair(type);
    for (const maxFds of [0, 1, 2]) {
      native.sendFds(left, bytes('x'), [left, left, left], WAIT_MS);
      const before = fdCount();
      assert.throws(() => native.recvFds(right, 100, maxFds, WAIT_MS), /EMSGSIZE.*recvmsg/);
      assert.is(fdCount(), before);
    }
    closeAll(left, right);
  });

  test(`${type}: end of file is empty data`, () => {
    const [left, right] = native.socketPair(type);
    native.sendFds(left, bytes('last'), [], WAIT_MS);
    native.fdClose(left);
    assert.is(text(native.recvFds(right, 100, 1, WAIT_MS).data), 'last');
    assert.equal(native.recvFds(right, 100, 1, WAIT_MS), { data: new Uint8Array(0), fds: [] });
    // And writing to it is an error, not SIGPIPE.
    assert.throws(() => native.sendFds(right, bytes('x'), [], WAIT_MS), /EPIPE/);
    native.fdClose(right);
  });

  test(`${type}: silence ends at the timeout`, () => {
    const [left, right] = native.socketPair(type);
    const start = performance.now();
    assert.throws(() => native.recvFds(right, 100, 1, 80), /ETIMEDOUT.*recvmsg/);
    const tookMs = performance.now() - start;
    assert.ok(tookMs >= 79 && tookMs < 1500, `${tookMs} ms`);
    assert.throws(() => native.recvFds(right, 100, 1, 0), /ETIMEDOUT/);
    closeAll(left, right);
  });
}

test('a full socket ends at the timeout', () => {
  const [left, right] = native.socketPair('stream');
  assert.throws(() => native.sendFds(left, new Uint8Array(8 << 20), [left], 80), /ETIMEDOUT.*sendmsg/);
  closeAll(left, right);
});

test('a packet longer than asked for throws, and its descriptors are closed', () => {
  const [left, right] = native.socketPair('seqpacket');
  native.sendFds(left, bytes('too long'), [left], WAIT_MS);
  const before = fdCount();
  assert.throws(() => native.recvFds(right, 3, 4, WAIT_MS), /EMSGSIZE/);
  assert.is(fdCount(), before);
  closeAll(left, right);
});

test('253 descriptors fit in a message, 254 do not', () => {
  const [left, right] = native.socketPair('stream');
  native.sendFds(left, bytes('x'), Array(253).fill(left), WAIT_MS);
  const { fds } = native.recvFds(right, 1, 253, WAIT_MS);
  assert.is(fds.length, 253);
  assert.throws(() => native.sendFds(left, bytes('x'), Array(254).fill(left), WAIT_MS), /fds: /);
  closeAll(left, right, ...fds);
});

test('with custody: they stand there when it returns, and nothing arrives once it is closed', () => {
  const [left, right] = native.socketPair('seqpacket');
  const custody = makeCustody();
  for (const count of [3, 0, 2]) native.sendFds(left, bytes('x'), Array(count).fill(left), WAIT_MS);
  const received = [0, 1, 2].map(() => native.recvFds(right, 1, 8, WAIT_MS, custody).fds);
  assert.equal(
    received.map(({ length }) => length),
    [3, 0, 2],
  );
  assert.is(closeCustody(custody), 2, 'messages with descriptors');
  assert.equal(lastArrived(custody), received[2]);
  native.sendFds(left, bytes('x'), [left], WAIT_MS);
  const before = fdCount();
  assert.throws(() => native.recvFds(right, 1, 8, WAIT_MS, custody), /ECANCELED.*recvmsg/);
  assert.is(fdCount(), before);
  assert.throws(() => native.recvFds(right, 1, 9, WAIT_MS, custody), /custody: /);
  closeAll(left, right, ...received.flat());
});

test('received descriptors are closed on exec', () => {
  const [left, right] = native.socketPair('stream');
  native.sendFds(left, bytes('x'), [left], WAIT_MS);
  const { fds } = native.recvFds(right, 1, 1, WAIT_MS);
  const flags = readFileSync(`/proc/self/fdinfo/${fds[0]}`, 'utf8');
  assert.ok(Number.parseInt(/flags:\s+(\d+)/.exec(flags)?.[1] ?? '0', 8) & 0o2000000);
  closeAll(left, right, ...fds);
});

test.run();
