import { random } from '../support/random.js';
import { suite } from '../support/suite.js';
import * as assert from 'uvu/assert';
import {
  encodeCredit,
  encodeData,
  encodeEnd,
  encodeRequest,
  FrameDecoder,
  parsePayload,
} from '../../src/contract/frames.js';

const frames = suite('frames');

/** The bytes of `{"action":"ping"}` with id 7, written down by hand: the guest's side is Python and shares no code with ours. */
const PING = Buffer.from(`464b0100070000001100000${'0'}${Buffer.from('{"action":"ping"}').toString('hex')}`, 'hex');

frames('a request is these bytes', () => {
  assert.equal(Buffer.from(encodeRequest(7, { action: 'ping' })), PING);
});

frames('frames come out whole however the bytes are cut', () => {
  const two = Buffer.concat([PING, PING]);
  for (let cut = 0; cut <= two.length; cut++) {
    const decoder = new FrameDecoder();
    const got = [...decoder.push(two.subarray(0, cut)), ...decoder.push(two.subarray(cut))];
    assert.is(got.length, 2);
    for (const frame of got) assert.equal([frame.id, parsePayload(frame)], [7, { action: 'ping' }]);
  }
});

frames('bytes that are not the protocol are refused', () => {
  assert.throws(() => new FrameDecoder().push(Buffer.alloc(12)), /magic/);
  const huge = Buffer.from(PING);
  huge.writeUInt32LE(0xffff_ffff, 8);
  assert.throws(() => new FrameDecoder().push(huge), /frame of/);
});

frames('a stream that begins in the middle of a frame', () => {
  const stream = Buffer.concat([PING, PING]);
  for (let start = 1; start < PING.length; start++) {
    for (const cut of [start, start + 5, PING.length + 3]) {
      const decoder = new FrameDecoder(true);
      const got = [...decoder.push(stream.subarray(start, cut)), ...decoder.push(stream.subarray(cut))];
      assert.equal(
        got.map((frame) => [frame.id, parsePayload(frame)]),
        [[7, { action: 'ping' }]],
        `from ${start}, cut at ${cut}`,
      );
    }
  }
});

frames('a payload that is not an object is refused', () => {
  for (const text of ['[]', 'null', '1', '{']) {
    assert.throws(() => parsePayload({ payload: Buffer.from(text) }));
  }
});

frames('a stream that begins in the middle of what a program wrote, however it is cut', () => {
  const stream = Buffer.concat([Buffer.alloc(40, 'x'), PING]);
  for (let cut = 0; cut <= stream.length; cut++) {
    const decoder = new FrameDecoder(true);
    const got = [...decoder.push(stream.subarray(0, cut)), ...decoder.push(stream.subarray(cut))];
    assert.equal(
      got.map(({ id }) => id),
      [7],
    );
  }
});

frames('what nobody wants is skipped, and not held, however it is cut', () => {
  const large = Buffer.concat([Buffer.from('464b020009000000a0860100', 'hex'), Buffer.alloc(100_000, 'FK')]);
  const stream = Buffer.concat([PING, large, PING]);
  for (const step of [1000, 4096, 65_536, stream.length]) {
    const asked: number[] = [];
    const decoder = new FrameDecoder(true, (_type, id) => {
      asked.push(id);
      return id === 7;
    });
    const got = [];
    for (let at = 0; at < stream.length; at += step) {
      got.push(...decoder.push(stream.subarray(at, at + step)));
      assert.ok(decoder.heldBytes <= PING.length, `${decoder.heldBytes} bytes are held`);
    }
    assert.equal(
      [got.map(({ id }) => id), asked],
      [
        [7, 7],
        [7, 9, 7],
      ],
    );
  }
});

frames('any bytes: frames within their limits, or RangeError, and nothing else', () => {
  let refused = 0;
  for (let seed = 1; seed <= 300; seed++) {
    const below = random(seed);
    const parts = Array.from({ length: 40 }, () => {
      const payload = Buffer.from(Array.from({ length: below(50) }, () => below(256)));
      const frame = encodeData(below(5), below(256), payload);
      frame[2] = below(8);
      return frame;
    });
    const stream = Buffer.concat(parts);
    const isBroken = below(3) > 0;
    for (let i = 0; isBroken && i < 3; i++) stream.writeUInt8(below(256), below(stream.length));
    const decoder = new FrameDecoder(false, (_type, id, length) => id !== 3 && length <= 200);
    try {
      const got = [];
      for (let at = 0; at < stream.length; ) {
        const step = 1 + below(99);
        got.push(...decoder.push(stream.subarray(at, at + step)));
        at += step;
        assert.ok(decoder.heldBytes <= 212 + 99);
      }
      for (const { id, payload } of got) assert.ok(id !== 3 && payload.length <= 200);
      if (!isBroken) assert.is(got.length, parts.filter((part) => part[4] !== 3).length);
    } catch (error) {
      if (!(error instanceof RangeError) || !isBroken) throw error;
      refused++;
    }
  }
  assert.ok(refused > 20, `${refused} were refused`);
});

frames('text that would fill memory, or nests without end, is refused before it is read', () => {
  const parse = (text: string) => parsePayload({ payload: Buffer.from(text) });
  assert.throws(() => parse(`{"x":${'['.repeat(20_000)}`), /too many brackets/);
  assert.throws(() => parse(`{"x":[${'0,'.repeat(9_000_000)}0]}`), /too many values/);
  const quoted = JSON.stringify({ stdout: '["\\{['.repeat(100_000) });
  assert.is((parse(quoted)['stdout'] as string).length, 500_000);
});

frames('frames of a stream are these bytes', () => {
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
  assert.is(hex(encodeData(7, 2, Buffer.from('ab'))), '464b04000700000003000000026162');
  assert.is(hex(encodeCredit(7, 0x1234)), '464b0500070000000400000034120000');
  assert.is(hex(encodeEnd(7, 1)), '464b0600070000000100000001');
});

frames.run();
