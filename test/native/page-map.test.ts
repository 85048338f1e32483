import { mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { suite } from 'uvu';
import * as assert from 'uvu/assert';
import { ABSENT, CHUNK_BYTES, FILLING, PageMap, PRESENT } from '../../src/contract/page-map.js';
import { native } from '../../src/native/binding.js';
import { inChild } from './in-child.js';

const test = suite('native page map');

test('JavaScript and C++ mean the same states', () => {
  const map = PageMap.create(4 * CHUNK_BYTES);
  const { states } = map;
  assert.ok(native.chunkClaim(states, 0));
  assert.is(states[0], FILLING);
  assert.not(map.claim(0));
  assert.ok(map.settle(0, true));
  assert.is(states[0], PRESENT);
  assert.not(native.chunkSettle(states, 0, true));

  assert.ok(map.claim(1));
  assert.not(native.chunkClaim(states, 1));
  assert.ok(native.chunkSettle(states, 1, false));
  assert.is(states[1], ABSENT);
  assert.ok(map.claim(1));

  assert.equal(map.counts(), { absent: 2, filling: 1, present: 1 });
});

test('an offset view of the buffer is respected', () => {
  const map = PageMap.create(4 * CHUNK_BYTES);
  assert.ok(native.chunkClaim(map.states.subarray(2), 1));
  assert.equal([...map.states], [ABSENT, ABSENT, ABSENT, FILLING]);
});

test('the last chunk may be short', () => {
  assert.is(PageMap.create(CHUNK_BYTES + 1).states.length, 2);
  assert.is(PageMap.create(0).states.length, 0);
});

test('each chunk has one winner, in JavaScript and C++ at once', async () => {
  const { chunks, wonOnce, winsByWorker } = (await inChild('claim-race')) as {
    chunks: number;
    wonOnce: number;
    winsByWorker: number[];
  };
  assert.is(wonOnce, chunks);
  assert.is(
    winsByWorker.reduce((sum, wins) => sum + wins),
    chunks,
  );
});

test('three workers fill each chunk once, and the result equals the source', async () => {
  const result = (await inChild('fill-race')) as { chunks: number; filled: number; skipped: number; counts: object };
  const { chunks } = result;
  assert.equal(result, {
    chunks,
    filled: chunks,
    skipped: 2 * chunks,
    counts: { absent: 0, filling: 0, present: chunks },
    bytesWritten: Math.ceil(chunks / 3) * CHUNK_BYTES,
    equal: true,
    allocated: Math.ceil(chunks / 3) * CHUNK_BYTES,
  });
});

test('a source that fails gives its chunk back, and keeps those before it', () => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-native-'));
  const path = join(folder, 'source');
  writeFileSync(path, new Uint8Array(4 * CHUNK_BYTES).fill(1));
  const readable = openSync(path, 'r');
  const unreadable = openSync(path, 'a');
  const memfd = native.memfdCreate('image');
  native.fdResize(memfd, 4 * CHUNK_BYTES);
  const map = PageMap.create(4 * CHUNK_BYTES);

  assert.equal(native.chunksFill(map.states, 0, 2, CHUNK_BYTES, readable, memfd), {
    filled: 2,
    skipped: 0,
    bytes: 2 * CHUNK_BYTES,
  });
  assert.throws(() => native.chunksFill(map.states, 0, 4, CHUNK_BYTES, unreadable, memfd), /EBADF.*pread/);
  assert.equal([...map.states], [PRESENT, PRESENT, ABSENT, ABSENT]);

  // A target that cannot be written fails in the same way.
  native.memfdSeal(memfd, ['write']);
  assert.throws(() => native.chunksFill(map.states, 0, 4, CHUNK_BYTES, readable, memfd), /EPERM.*pwrite/);
  assert.equal([...map.states], [PRESENT, PRESENT, ABSENT, ABSENT]);

  for (const fd of [readable, unreadable, memfd]) native.fdClose(fd);
  rmSync(folder, { recursive: true });
});

test('a source that has no size is refused: it would count as all zero', () => {
  const [left, right] = native.socketPair('stream');
  const map = PageMap.create(CHUNK_BYTES);
  assert.throws(() => native.chunksFill(map.states, 0, 1, CHUNK_BYTES, left, right), /EINVAL.*fstat/);
  assert.is(map.states[0], ABSENT);
  native.fdClose(left);
  native.fdClose(right);
});

test('past the end of a short source there are zeros', () => {
  const source = native.memfdCreate('source');
  const memfd = native.memfdCreate('image');
  native.fdWrite(source, Uint8Array.of(1, 2, 3), CHUNK_BYTES);
  native.fdResize(memfd, 3 * CHUNK_BYTES);
  const map = PageMap.create(3 * CHUNK_BYTES);
  assert.equal(native.chunksFill(map.states, 0, 3, CHUNK_BYTES, source, memfd), { filled: 3, skipped: 0, bytes: 3 });
  const into = new Uint8Array(4);
  native.fdRead(memfd, into, CHUNK_BYTES);
  assert.equal([...into], [1, 2, 3, 0]);
  assert.is(native.fdSize(memfd).bytes, 3 * CHUNK_BYTES);
  native.fdClose(source);
  native.fdClose(memfd);
});

test.run();
