/**
 * A stream of a guest in a WebSocket. Binary messages are a byte for the channel and then data; text messages are JSON
 * (contract/rest.ts). Whoever is slow is waited for: the guest is granted no more than the WebSocket has taken, and the WebSocket is
 * not read while the guest has no room.
 */
import type { RawData, WebSocket } from 'ws';
import { ForkdError } from '../../contract/errors.js';
import { Channel } from '../../contract/guest.js';
import type { StreamCommand, StreamNews } from '../../contract/rest.js';
import type { AgentStream } from '../agent/stream.js';
import { bodyOfError } from './reply.js';

/** RFC 6455, 7.4.1: how a stream that failed is closed; the reason is in the last text message. */
const CLOSE_FAILED = 1011;
/** How often it is asked whether a client that is not read is still there. */
const GONE_MS = 1000;

/** What a client says before the stream listens. */
export class Behind {
  readonly #held: [RawData, boolean][] = [];
  readonly #hold = (...message: [RawData, boolean]): void => {
    this.#held.push(message);
  };

  constructor(readonly socket: WebSocket) {
    socket.on('message', this.#hold);
  }

  /** Whoever gets these listens from now on. */
  take(): [RawData, boolean][] {
    this.socket.off('message', this.#hold);
    return this.#held;
  }
}

/** Until the stream has ended. Does not throw: a failure is told to the client. Resolves to it. */
export const bridge = async (
  socket: WebSocket,
  stream: AgentStream,
  behind: Behind,
): Promise<ForkdError | undefined> => {
  const tell = (news: StreamNews) => send(socket, JSON.stringify(news));
  const input = new Input(socket, stream);
  const hear = (data: RawData, isBinary: boolean) => {
    if (!isBinary) return void command(stream, input, asBuffer(data)).catch(() => stream.close());
    const bytes = asBuffer(data);
    if (bytes[0] !== Channel.input) return stream.close();
    input.take(bytes.subarray(1));
  };
  for (const message of behind.take()) hear(...message);
  socket.on('message', hear);
  socket.on('close', () => {
    input.close();
    stream.close();
  });
  try {
    await tell({ opened: await stream.opened });
    for await (const { channel, data } of stream) {
      if (data.length === 0) await tell({ end: channel });
      else await send(socket, Buffer.concat([Buffer.of(channel), data]));
    }
    await tell({ ended: await stream.ended });
    socket.close();
    return undefined;
  } catch (error) {
    const failure = ForkdError.from(error);
    await tell({ error: bodyOfError(failure) });
    socket.close(CLOSE_FAILED);
    return failure;
  }
};

/** What the client has for the guest: not read while the guest has no room. */
class Input {
  #written = Promise.resolve();
  #asking: NodeJS.Timeout | undefined;

  constructor(
    readonly socket: WebSocket,
    readonly stream: AgentStream,
  ) {}

  take(data: Uint8Array): void {
    // The program may have ended, or closed its input: then nobody waits for this.
    const mine = this.stream.write(data).catch(() => undefined);
    this.#written = mine;
    this.socket.pause();
    // Nobody hears, meanwhile, that the client has gone: who writes is told. A pong that nobody asked for is not answered.
    this.#asking ??= setInterval(() => this.socket.pong(), GONE_MS).unref();
    void mine.then(() => {
      // Messages that had been read before the pause come all the same.
      if (this.#written !== mine) return;
      this.close();
      this.socket.resume();
    });
  }

  /** When the guest has had room for all of it. */
  async end(): Promise<void> {
    await this.#written;
    this.stream.end();
  }

  close(): void {
    clearInterval(this.#asking);
    this.#asking = undefined;
  }
}

const command = async (stream: AgentStream, input: Input, data: Buffer): Promise<void> => {
  const said = JSON.parse(data.toString('utf8')) as StreamCommand;
  if ('end' in said) await input.end();
  else if ('signal' in said || 'rows' in said) {
    // The agent has to have begun it. One that came too late is no failure of the stream.
    await stream.opened.then(() => stream.control(said)).catch(() => undefined);
  } else throw new TypeError('not a command');
};

/** When it has left this process. A client that is gone takes nothing, and the stream is told by `close`. */
const send = (socket: WebSocket, data: string | Buffer): Promise<void> =>
  new Promise((resolve) => socket.send(data, () => resolve()));

export const asBuffer = (data: RawData): Buffer =>
  Array.isArray(data) ? Buffer.concat(data) : Buffer.isBuffer(data) ? data : Buffer.from(data);
