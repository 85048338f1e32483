/** Decompresses a stream of zstd frames. zstd-napi's own stream holds all that one of its inputs unpacks to, which a bomb makes gigabytes. */
import { setImmediate as others } from 'node:timers/promises';
import binding from 'zstd-napi/binding.js';

const PART_BYTES = 128 * 1024;
/** Zeros unpack to thousands of times their input: after so many bytes signals and timers get a turn, or nothing could interrupt it for seconds. */
const TURN_BYTES = 16 * 1024 * 1024;

/** Each part is valid until the next is asked for. Throws an Error for what is damaged or cut off. */
export async function* unzstd(source: AsyncIterable<Uint8Array>): AsyncGenerator<Buffer> {
  const zstd = new binding.DCtx();
  const into = Buffer.allocUnsafeSlow(PART_BYTES);
  let isInFrame = false;
  let sinceTurn = 0;
  for await (const part of source) {
    let rest = part;
    for (let more = true; more; ) {
      const [left, produced, consumed] = zstd.decompressStream(into, rest);
      rest = rest.subarray(consumed);
      // A full part may have more behind it, which needs no more input.
      more = rest.length > 0 || (produced === into.length && left !== 0);
      isInFrame = left !== 0;
      if (produced > 0) yield into.subarray(0, produced);
      sinceTurn += produced;
      if (sinceTurn < TURN_BYTES) continue;
      sinceTurn = 0;
      await others();
    }
  }
  if (isInFrame) throw new Error('truncated');
}
