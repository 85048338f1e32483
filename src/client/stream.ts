/** A stream of a guest, over the daemon's WebSocket: a program while it runs, or a connection to a service inside. */
import { WebSocket } from 'ws';
import { Channel, type StreamReply, type StreamRequest } from '../contract/guest.js';
import type { StreamNews } from '../contract/rest.js';
import { ControllerError } from './error.js';

/** One piece of output; without data: that channel has ended. */
export interface StreamPiece {
  /** 1 stdout, or what a connection brings; 2 stderr. */
  channel: number;
  data: Uint8Array;
}

/** The socket is not read while so much has not been taken. */
const HELD_MAX = 512 * 1024;
/** Input in one message: the daemon takes none of more than 2 MiB. */
const MESSAGE_BYTES = 256 * 1024;
/** How long the daemon may take to say goodbye. */
const CLOSE_MS = 2000;
const UNIX = 'unix:';

export class GuestStream implements AsyncIterable<StreamPiece> {
  /** What the guest tells when it is under way. Rejects when it could not be opened. */
  readonly opened: Promise<Record<string, unknown>>;
  /** How it ended. Rejects with a ControllerError when it failed. */
  readonly ended: Promise<StreamReply>;
  readonly #socket: WebSocket;
  /** When it has been asked for. */
  readonly #asked: Promise<void>;
  readonly #pieces: StreamPiece[] = [];
  #held = 0;
  #isOver = false;
  #failure: Error | undefined;
  #wake: (() => void) | undefined;

  constructor(url: string, token: string | undefined, request: StreamRequest, ca?: string) {
    const headers = token === undefined ? {} : { authorization: `Bearer ${token}` };
    this.#socket = new WebSocket(url, { headers, perMessageDeflate: false, ...(ca === undefined ? {} : { ca }) });
    let opened!: (facts: Record<string, unknown>) => void;
    let ended!: (reply: StreamReply) => void;
    const failures: ((error: Error) => void)[] = [];
    this.opened = new Promise((resolve, reject) => {
      opened = resolve;
      failures.push(reject);
    });
    this.ended = new Promise((resolve, reject) => {
      ended = resolve;
      failures.push(reject);
    });
    this.#asked = new Promise((resolve, reject) => {
      this.#socket.on('open', () => {
        this.#socket.send(JSON.stringify(request));
        resolve();
      });
      failures.push(reject);
    });
    // Whoever waits for one of them may not wait for the others.
    for (const one of [this.opened, this.ended, this.#asked]) one.catch(() => undefined);
    const fail = (error: Error) => {
      // Whoever reads late must not take the close behind a good end for a failure.
      if (this.#isOver) return;
      this.#failure = error;
      for (const reject of failures) reject(error);
      this.#over();
    };
    this.#socket.on('message', (data: Buffer, isBinary: boolean) => {
      if (isBinary) return this.#take({ channel: data[0] ?? 0, data: data.subarray(1) });
      const news = JSON.parse(data.toString('utf8')) as StreamNews;
      if ('opened' in news) opened(news.opened);
      else if ('end' in news) this.#take({ channel: news.end, data: new Uint8Array(0) });
      else if ('error' in news) fail(new ControllerError(0, news.error, url));
      else {
        ended(news.ended);
        this.#over();
      }
    });
    this.#socket.on('unexpected-response', (_, response) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part));
      response.on('end', () =>
        fail(new ControllerError(response.statusCode ?? 0, parsed(Buffer.concat(parts).toString('utf8')), url)),
      );
    });
    this.#socket.on('error', fail);
    this.#socket.on('close', () => fail(new Error('the daemon closed the connection')));
  }

  /** Output in the order in which the guest sent it. Ends with the stream; throws what `ended` rejects with. Leaving it early closes the stream. */
  async *[Symbol.asyncIterator](): AsyncGenerator<StreamPiece, void> {
    try {
      for (;;) {
        const piece = this.#pieces.shift();
        if (piece) {
          this.#held -= piece.data.length;
          if (this.#held < HELD_MAX / 2 && this.#socket.isPaused) this.#socket.resume();
          yield piece;
        } else if (this.#isOver) {
          if (this.#failure) throw this.#failure;
          return;
        } else {
          await new Promise<void>((resolve) => {
            this.#wake = resolve;
          });
          this.#wake = undefined;
        }
      }
    } finally {
      this.close();
    }
  }

  /** Resolves when it has left this process. */
  async write(data: Uint8Array): Promise<void> {
    const parts: Promise<void>[] = [];
    // All at once: what is said behind it, an end say, must not come between.
    for (let at = 0; at < data.length; at += MESSAGE_BYTES)
      parts.push(this.#send(Buffer.concat([Buffer.of(Channel.input), data.subarray(at, at + MESSAGE_BYTES)])));
    await Promise.all(parts);
  }

  /** No more input. */
  end(): void {
    void this.#command({ end: true });
  }

  /** A signal to the program, or another size of its terminal. */
  control(what: { signal: string | number } | { rows: number; cols: number }): Promise<void> {
    return this.#command(what);
  }

  /** A program that runs for this stream alone is killed; one in the background goes on. */
  close(): void {
    if (this.#isOver) return;
    this.#socket.close();
    // What was written may keep the daemon from reading that.
    const late = setTimeout(() => this.#socket.terminate(), CLOSE_MS).unref();
    this.#socket.once('close', () => clearTimeout(late));
  }

  #command(what: object): Promise<void> {
    return this.#send(JSON.stringify(what)).catch(() => undefined);
  }

  /** What is said before there is a connection waits for it. */
  async #send(data: string | Buffer): Promise<void> {
    await this.#asked;
    await new Promise<void>((resolve, reject) =>
      this.#socket.send(data, (error) => (error ? reject(error) : resolve())),
    );
  }

  #take(piece: StreamPiece): void {
    this.#pieces.push(piece);
    this.#held += piece.data.length;
    if (this.#held > HELD_MAX) this.#socket.pause();
    this.#wake?.();
  }

  #over(): void {
    this.#isOver = true;
    this.#wake?.();
    this.#socket.close();
  }
}

const parsed = (text: string): unknown => {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
};

/** Where a path of the daemon at `baseUrl` takes WebSockets. */
export const streamUrl = (baseUrl: string, path: string): string =>
  baseUrl.startsWith(UNIX)
    ? `ws+unix:${baseUrl.slice(UNIX.length)}:${path}`
    : `${baseUrl.replace(/^http/, 'ws')}${path}`;
