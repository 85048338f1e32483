/**
 * The host's side of a stream of the agent (contract/guest.ts draws it): bytes in both directions under one request. What the
 * guest sends is held until it is taken, and never more than the window; what is written waits until the guest has room.
 */
import { ForkdError } from '../../contract/errors.js';
import { creditOf, encodeCredit, encodeData, encodeEnd, type Frame, parsePayload } from '../../contract/frames.js';
import { Channel, FrameType, INPUT_WINDOW, STREAM_CHUNK_BYTES, type StreamReply } from '../../contract/guest.js';
import { limits } from '../../contract/limits.js';
import { requireReply } from '../../contract/replies.js';
import { type Piece, Pieces } from './pieces.js';

/** Types of frames that a stream hears. */
const FRAMES = new Set<number>([FrameType.reply, FrameType.opened, FrameType.data, FrameType.credit, FrameType.end]);

/** What a stream needs of the connection. */
export interface Carrier {
  readonly name: string;
  /** `onTaken`: the port has it. */
  send(frame: Uint8Array, onTaken?: () => void): void;
  /** Tells the agent that nobody wants the stream any more. */
  closeStream(id: number): void;
  control(request: object): Promise<void>;
}

interface Writer {
  data: Uint8Array;
  resolve: () => void;
  reject: (error: Error) => void;
}

export class AgentStream implements AsyncIterable<Piece> {
  readonly isStream = true;
  readonly isAttach: boolean;
  /** Facts that the agent tells when the stream is under way. Rejects when it could not be opened. */
  readonly opened: Promise<Record<string, unknown>>;
  /** How it ended. Rejects with AGENT_UNREACHABLE, AGENT_ERROR, GUEST_OUTDATED. */
  readonly ended: Promise<StreamReply>;
  #pieces = new Pieces();
  #taken = 0;
  /** Bytes that the guest may still send. */
  #granted: number;
  readonly #endedChannels = new Set<number>();
  #wake: (() => void) | undefined;
  #isOver = false;
  #failure: ForkdError | undefined;
  #isOpen = false;
  /** No more input comes, which the guest has yet to hear. */
  #inputEnds = false;
  #room = 0;
  /** Of what was written, what the port has not taken. */
  #unsent = 0;
  #writers: Writer[] = [];
  #settle: {
    opened: (facts: Record<string, unknown>) => void;
    ended: (reply: StreamReply) => void;
    failed: (error: ForkdError) => void;
  };

  constructor(
    readonly id: number,
    readonly action: string,
    readonly window: number,
    readonly carrier: Carrier,
  ) {
    this.#granted = window;
    this.isAttach = action === 'attach';
    let opened!: (facts: Record<string, unknown>) => void;
    let notOpened!: (error: ForkdError) => void;
    let ended!: (reply: StreamReply) => void;
    let broken!: (error: ForkdError) => void;
    this.opened = new Promise((resolve, reject) => {
      opened = resolve;
      notOpened = reject;
    });
    this.ended = new Promise((resolve, reject) => {
      ended = resolve;
      broken = reject;
    });
    // Whoever waits for one of them may not wait for the other.
    this.opened.catch(() => undefined);
    this.ended.catch(() => undefined);
    this.#settle = {
      opened,
      ended,
      failed: (error) => {
        notOpened(error);
        broken(error);
      },
    };
  }

  maxBytes(type: number): number {
    return FRAMES.has(type) ? limits.streamFrameMaxBytes : 0;
  }

  /** A frame with this stream's id. True when it was the last. Throws RangeError when it is more than was granted. */
  take(frame: Frame): boolean {
    if (frame.type === FrameType.opened) {
      if (this.#isOpen) return false;
      this.#isOpen = true;
      this.#room = INPUT_WINDOW;
      // What was written before waited for this.
      this.#write();
      this.#settle.opened(parsePayload(frame));
    } else if (frame.type === FrameType.data) {
      this.#hear(frame.payload[0] ?? 0, frame.payload.subarray(1));
    } else if (frame.type === FrameType.end) {
      const channel = frame.payload[0] ?? 0;
      if (this.#endedChannels.has(channel)) return false;
      this.#endedChannels.add(channel);
      this.#pieces.push(channel, new Uint8Array(0));
      this.#wake?.();
    } else if (frame.type === FrameType.credit) {
      // It cannot have taken what has not been sent.
      this.#room = Math.min(this.#room + creditOf(frame), INPUT_WINDOW - this.#unsent);
      this.#write();
    } else {
      this.#end(requireReply(parsePayload(frame)) as unknown as StreamReply);
      return true;
    }
    return false;
  }

  #hear(channel: number, data: Uint8Array): void {
    this.#granted -= data.length;
    if (this.#granted < 0) throw new RangeError('more data than was granted');
    if (data.length === 0) return;
    this.#pieces.push(channel, data);
    this.#wake?.();
  }

  #end(reply: StreamReply): void {
    const { error } = reply;
    // A program that was late has an exit code and an error; anything else that tells an error has failed.
    if (error !== undefined && !reply.timed_out) {
      const isOlder = error.startsWith('unknown action');
      this.fail(isOlder ? outdated(this.carrier.name, this.action) : new ForkdError('AGENT_ERROR', { error }));
      return;
    }
    this.#settle.opened({});
    this.#settle.ended(reply);
    this.#over(new ForkdError('AGENT_ERROR', { error: 'the stream has ended' }));
  }

  fail(error: ForkdError): void {
    this.#failure = error;
    this.#settle.failed(error);
    this.#over(error);
  }

  #over(error: ForkdError): void {
    this.#isOver = true;
    for (const { reject } of this.#writers.splice(0)) reject(error);
    this.#wake?.();
  }

  /** Output in the order in which the guest sent it; each piece counts as taken when the next is asked for. Throws what `ended` rejects with. */
  async *[Symbol.asyncIterator](): AsyncGenerator<Piece, void> {
    try {
      for (;;) {
        const piece = this.#pieces.shift();
        if (piece) {
          yield piece;
          this.#grant(piece.data.length);
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
      if (!this.#isOver) this.close();
    }
  }

  #grant(bytes: number): void {
    this.#taken += bytes;
    if (this.#taken < this.window / 4 || this.#isOver) return;
    this.carrier.send(encodeCredit(this.id, this.#taken));
    this.#granted += this.#taken;
    this.#taken = 0;
  }

  /** Resolves when all of it is on its way. Throws AGENT_ERROR when the stream has ended. */
  write(data: Uint8Array): Promise<void> {
    if (this.#isOver)
      return Promise.reject(this.#failure ?? new ForkdError('AGENT_ERROR', { error: 'the stream has ended' }));
    if (data.length === 0) return Promise.resolve();
    return new Promise((resolve, reject) => {
      this.#writers.push({ data, resolve, reject });
      this.#write();
    });
  }

  #write(): void {
    for (let writer = this.#writers[0]; writer && this.#room > 0; writer = this.#writers[0]) {
      const part = writer.data.subarray(0, Math.min(this.#room, STREAM_CHUNK_BYTES));
      this.#unsent += part.length;
      this.carrier.send(encodeData(this.id, Channel.input, part), () => {
        this.#unsent -= part.length;
      });
      this.#room -= part.length;
      writer.data = writer.data.subarray(part.length);
      if (writer.data.length > 0) continue;
      this.#writers.shift();
      writer.resolve();
    }
    if (!this.#inputEnds || !this.#isOpen || this.#writers.length > 0) return;
    this.#inputEnds = false;
    this.carrier.send(encodeEnd(this.id, Channel.input));
  }

  /** No more input comes, behind all that was written. */
  end(): void {
    if (this.#isOver) return;
    this.#inputEnds = true;
    // An agent that has not begun the stream would take the end for that of one that is over.
    this.#write();
  }

  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** A signal, or another size of the terminal. Throws AGENT_ERROR. */
  control(what: { signal: string | number } | { rows: number; cols: number }): Promise<void> {
    return this.carrier.control({ action: 'control', stream: this.id, ...what });
  }

  /** Nobody wants it any more. A program that runs for this stream alone is killed, and `ended` tells when it has; one in the background is left. */
  close(): void {
    if (this.#isOver) return;
    this.#pieces.clear();
    this.carrier.closeStream(this.id);
  }
}

export const outdated = (target: string, action: string): ForkdError =>
  new ForkdError('GUEST_OUTDATED', { target, action });

export const OUTPUT_WINDOW = limits.streamWindowBytes;
