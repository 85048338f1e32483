import { suite } from '../support/suite.js';
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

test.run();
