/** A stream of a guest that is one channel of bytes in each direction, as a Duplex of Node: for sockets, HTTP and files. */
import { Duplex } from 'node:stream';

/** Both the agent's streams and those of the daemon's client are such. */
export interface ByteStream extends AsyncIterable<{ data: Uint8Array }> {
  write(data: Uint8Array): Promise<void>;
  end(): void;
  close(): void;
}

/** Its end closes nothing by itself: a half-closed connection may still bring something. Destroying it closes the stream. */
export const duplexOf = (stream: ByteStream): Duplex => {
  const pieces = stream[Symbol.asyncIterator]();
  let isOver = false;
  const duplex = new Duplex({
    read() {
      pieces.next().then(
        ({ done, value }) => {
          isOver = done === true;
          // A piece without data is the end of the channel.
          duplex.push(done || value.data.length === 0 ? null : value.data);
        },
        (error) => duplex.destroy(error),
      );
    },
    write(data: Uint8Array, _, done) {
      stream.write(data).then(() => done(), done);
    },
    final(done) {
      stream.end();
      done();
    },
    destroy(error, done) {
      if (!isOver) stream.close();
      done(error);
    },
  });
  return duplex;
};
