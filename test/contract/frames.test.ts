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
    assert.throws(() => parsePayload({ type: 2, id: 1, payload: Buffer.from(text) }));
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

frames('frames of a stream are these bytes', () => {
  const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
  assert.is(hex(encodeData(7, 2, Buffer.from('ab'))), '464b04000700000003000000026162');
  assert.is(hex(encodeCredit(7, 0x1234)), '464b0500070000000400000034120000');
  assert.is(hex(encodeEnd(7, 1)), '464b0600070000000100000001');
});

frames.run();
