/** The framed agent protocol, asynchronous, for sandboxes that live in the main thread. Any number of calls and streams may be under way. */
import { Socket } from 'node:net';
import { nextCallId } from '../../contract/call-ids.js';
import { ForkdError } from '../../contract/errors.js';
import { encodeRequest, type Frame, FrameDecoder, parsePayload } from '../../contract/frames.js';
import { FrameType, type GuestReply, type GuestRequest, type StreamRequest } from '../../contract/guest.js';
import type { HeldKind } from '../../contract/held.js';
import { limits } from '../../contract/limits.js';
import { replyMaxBytes, requireReply } from '../../contract/replies.js';
import { FrameBudget } from './frame-budget.js';
import { SendMark } from './send-mark.js';
import { AgentStream, type Carrier, OUTPUT_WINDOW, outdated } from './stream.js';

/** Who gets the frames of one id. */
interface Taker {
  /** Bytes that a frame of this type may have; 0: none is waited for. */
  maxBytes(type: number): number;
  /** It may have bytes for the guest on their way at any time. */
  isStream?: boolean;
  /** Closing it leaves a program in the background to itself. */
  isAttach?: boolean;
  /** The agent has said that it has begun. */
  isOpen?: boolean;
  /** True when it was the last. */
  take(frame: Frame): boolean;
  fail(error: ForkdError): void;
}

export type Read<T> = (payload: Uint8Array) => T | Promise<T>;

const readReply = (payload: Uint8Array): GuestReply => requireReply(parsePayload({ payload }));

export class AgentClient implements Carrier {
  readonly #socket: Socket;
  readonly #decoder = new FrameDecoder(true, (type, id, length) => this.#wants(type, id, length));
  readonly #budget = new FrameBudget();
  readonly #takers = new Map<number, Taker>();
  /** Streams that were closed before the agent had said that they had begun. */
  readonly #leaving = new Set<number>();
  /** Settles when the connection is over. */
  readonly closed: Promise<void>;
  #broken: ForkdError | undefined;
  /** What is to be sent later: see `quiet`. */
  #held: { frame: Uint8Array; onTaken: (() => void) | undefined }[] | undefined;
  readonly #mark: SendMark | undefined;

  /** Takes over the descriptor, or the socket, and closes it in the end. */
  constructor(
    from: number | Socket,
    readonly name: string,
    /** A file that is there while a frame may be half written. */
    markPath?: string,
    /** Told of what the guest does to this connection that no agent does. */
    readonly onHeld: (kind: HeldKind) => void = () => undefined,
    /** Why this connection broke, when it is known: what ended the sandbox. */
    readonly explain: (failure: ForkdError) => Promise<ForkdError> = async (failure) => failure,
  ) {
    this.#mark = markPath === undefined ? undefined : new SendMark(markPath);
    this.#socket = typeof from === 'number' ? new Socket({ fd: from, readable: true, writable: true }) : from;
    this.#socket.on('data', (data) => this.#read(data));
    this.#socket.on('error', (error) => this.#fail(this.#unreachable(error.message)));
    this.#socket.on('close', () => this.#fail(this.#unreachable('the sandbox has ended')));
    this.closed = new Promise((resolve) => this.#socket.once('close', () => resolve()));
    this.#socket.unref();
  }

  /**
   * `read` makes something of the answer, and throws when it is none. A timeout of 0 waits for as long as the sandbox lives.
   * Throws AGENT_UNREACHABLE, AGENT_TIMEOUT, AGENT_PROTOCOL.
   */
  call<T = GuestReply>(request: GuestRequest, timeoutMs: number, read: Read<T> = readReply as Read<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      if (this.#broken) return reject(this.#broken);
      const id = nextCallId();
      const late = () => {
        this.#forget(id);
        reject(new ForkdError('AGENT_TIMEOUT', { target: this.name, seconds: timeoutMs / 1000 }));
      };
      const timer = timeoutMs > 0 ? setTimeout(late, timeoutMs) : undefined;
      const most = replyMaxBytes(request.action);
      this.attach(id, {
        maxBytes: (type) => (type === FrameType.reply ? most : 0),
        take: (frame) => {
          clearTimeout(timer);
          this.#made(read, frame.payload).then(resolve, reject);
          return true;
        },
        fail: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      this.send(encodeRequest(id, request));
    });
  }

  async #made<T>(read: Read<T>, payload: Uint8Array): Promise<T> {
    try {
      return await read(payload);
    } catch (error) {
      // It is not the guest's fault.
      if (error instanceof ForkdError) throw error;
      this.onHeld('no-answer');
      throw this.#protocolError(String(error), error);
    }
  }

  /** Opens a stream; whether it could be, `opened` tells. Throws AGENT_UNREACHABLE. */
  open(request: StreamRequest): AgentStream {
    if (this.#broken) throw this.#broken;
    const { window = OUTPUT_WINDOW } = request;
    const stream = new AgentStream(nextCallId(), request.action, window, this);
    this.attach(stream.id, stream);
    this.send(encodeRequest(stream.id, { ...request, window }));
    return stream;
  }

  /** A call that answers `error` when it failed, as an exception. Throws AGENT_ERROR, GUEST_OUTDATED and what `call` throws. */
  async ask<T extends GuestReply>(request: GuestRequest, timeoutMs: number): Promise<T> {
    const reply = await this.call(request, timeoutMs);
    const { error } = reply as { error?: string };
    if (error?.startsWith('unknown action')) throw outdated(this.name, request.action);
    if (error !== undefined) throw new ForkdError('AGENT_ERROR', { error });
    return reply as T;
  }

  async control(request: object): Promise<void> {
    await this.ask(request as GuestRequest, CONTROL_MS);
  }

  closeStream(id: number): void {
    const taker = this.#takers.get(id);
    if (taker && !taker.isOpen) this.#leaving.add(id);
    this.#tellClosed(id);
  }

  #tellClosed(id: number): void {
    const taker = this.#takers.get(id);
    const closed = () => {
      // A program that is left to itself tells nobody how it ends.
      if (!taker?.isAttach || this.#takers.get(id) !== taker || this.#leaving.has(id)) return;
      taker.take({ type: FrameType.reply, id, payload: LEFT });
      this.#forget(id);
    };
    // It may have ended just now, as its reply tells; or not have begun, since an agent has several threads: when it has, it is told again.
    const unknown = ({ code }: ForkdError) => {
      if (code === 'AGENT_ERROR') return;
      this.#leaving.delete(id);
      closed();
    };
    this.control({ action: 'control', stream: id, close: true }).then(closed, unknown);
  }

  /** Gives the frames of an id to `taker` until its last. */
  attach(id: number, taker: Taker): void {
    this.#takers.set(id, taker);
    this.#socket.ref();
  }

  send(frame: Uint8Array, onTaken?: () => void): void {
    if (this.#held) this.#held.push({ frame, onTaken });
    else if (!this.#broken) this.#write(frame, onTaken);
  }

  #write(frame: Uint8Array, onTaken?: () => void): void {
    const mark = this.#mark;
    mark?.before(frame.length);
    this.#socket.write(frame, () => {
      mark?.settle(this.#socket.writableLength);
      onTaken?.();
    });
    mark?.after(frame.length, this.#socket.writableLength);
    if (this.#socket.writableLength > limits.agentBacklogBytes)
      this.#refuse('reads-nothing', this.#unreachable('it does not read what it is sent'));
  }

  /**
   * Runs `use` while nothing is on its way to the guest. A guest that is copied in the middle of a frame would take the copy's
   * first words for the rest of it. With streams under way the agent is asked something: its answer says that it has all of them.
   */
  async quiet<T>(use: () => Promise<T>): Promise<T> {
    if (![...this.#takers.values()].some(({ isStream }) => isStream)) return use();
    // Before frames are held, so that this one is not.
    const heard = this.call({ action: 'ping' }, QUIET_MS);
    this.#held = [];
    try {
      await heard;
      return await use();
    } finally {
      const held = this.#held;
      this.#held = undefined;
      for (const { frame, onTaken } of held) this.send(frame, onTaken);
    }
  }

  /** Fills up a frame that an earlier writer was killed in the middle of: the agent takes it for a broken request and skips what is left. */
  pad(bytes: number): void {
    this.#socket.write(new Uint8Array(bytes));
  }

  close(): void {
    this.#socket.destroy();
  }

  #read(data: Uint8Array): void {
    try {
      for (const frame of this.#decoder.push(data)) {
        if (this.#takers.get(frame.id)?.take(frame)) this.#forget(frame.id);
        else if (frame.type === FrameType.opened && this.#leaving.delete(frame.id)) this.#tellClosed(frame.id);
      }
    } catch (error) {
      this.#refuse('not-the-protocol', this.#protocolError(String(error), error));
    }
    if (this.#decoder.isMidway) this.#budget.spend(data.length / BYTES_AS_FRAME);
    const ms = this.#budget.pauseMs();
    if (ms === 0) return;
    this.onHeld('flood');
    this.#socket.pause();
    // Until then it waits in its own port, as for any reader that is slow.
    setTimeout(() => this.#socket.resume(), ms).unref();
  }

  /** Asked at each header. */
  #wants(type: number, id: number, length: number): boolean {
    const taker = this.#takers.get(id);
    const most = taker?.maxBytes(type) ?? 0;
    this.#budget.spend(most > 0 ? 1 : limits.strayFrameCost);
    if (most === 0 || length <= most) return most > 0;
    this.onHeld('frame-too-large');
    this.#forget(id);
    taker?.fail(this.#protocolError(`a frame of ${length} bytes`));
    return false;
  }

  #refuse(kind: HeldKind, error: ForkdError): void {
    if (!this.#broken) this.onHeld(kind);
    this.#fail(error);
    this.#socket.destroy();
  }

  #protocolError(reason: string, cause?: unknown): ForkdError {
    return new ForkdError('AGENT_PROTOCOL', { target: this.name, reason }, cause);
  }

  /** An idle sandbox must not keep the process alive. */
  #forget(id: number): void {
    this.#takers.delete(id);
    this.#leaving.delete(id);
    if (this.#takers.size === 0) this.#socket.unref();
  }

  #unreachable(reason: string): ForkdError {
    return new ForkdError('AGENT_UNREACHABLE', { target: this.name, reason });
  }

  #fail(error: ForkdError): void {
    this.#broken ??= error;
    const takers = [...this.#takers.values()];
    this.#takers.clear();
    this.#leaving.clear();
    for (const taker of takers) taker.fail(error);
  }
}

/** In the place of a reply, to who has left a program in the background. */
const LEFT = Buffer.from(JSON.stringify({ exit_code: 0 }));
/** Bytes that are looked through for a first header, and take as long as a frame. */
const BYTES_AS_FRAME = 256;
const CONTROL_MS = 30_000;
/** The first answer of an agent may take so long on a busy host. */
const QUIET_MS = 30_000;
