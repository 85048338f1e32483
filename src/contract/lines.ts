import { limits } from './limits.js';

/** Lines of JSON out of the pieces of a stream. Throws RangeError for one that is too long, SyntaxError for one that is none. */
export async function* jsonLines<T>(pieces: AsyncIterable<{ data: Uint8Array }>): AsyncGenerator<T, void> {
  // A piece may end in the middle of a line, and of a character.
  let held = Buffer.alloc(0);
  for await (const { data } of pieces) {
    held = Buffer.concat([held, data]);
    for (let end = held.indexOf(NEWLINE); end >= 0; end = held.indexOf(NEWLINE)) {
      const text = held.toString('utf8', 0, end);
      held = held.subarray(end + 1);
      yield JSON.parse(text) as T;
    }
    if (held.length > limits.jsonLineMaxBytes)
      throw new RangeError(`a line of more than ${limits.jsonLineMaxBytes} bytes`);
  }
}

const NEWLINE = 0x0a;
