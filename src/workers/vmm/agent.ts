/** The framed agent protocol, blocking, for worker threads. The main thread has its own asynchronous client. */
import { nextCallId } from '../../contract/call-ids.js';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { encodeRequest, type Frame, FrameDecoder, parsePayload } from '../../contract/frames.js';
import { FrameType, type GuestRequest, type Hello } from '../../contract/guest.js';
import { limits } from '../../contract/limits.js';
import { replyMaxBytes, requireReply } from '../../contract/replies.js';
import { native } from '../../native/binding.js';
import type { Deadline } from '../deadline.js';

const READ_BYTES = 256 * 1024;

export class AgentPort {
  // Any guest but a parent may have been copied in the middle of an answer to somebody else.
  #decoder = new FrameDecoder(true, (type, id, length) => this.#wants(type, id, length));
  /** Bytes that the answers may have, by the ids of their requests. Everything else is skipped. */
  readonly #awaited = new Map<number, number>();

  constructor(
    readonly fd: number,
    readonly name: string,
  ) {}

  /** Waits for the frame that the agent sends once, when it is warm. */
  hello(deadline: Deadline): Hello {
    return this.#await((frame) => frame.type === FrameType.hello, deadline) as unknown as Hello;
  }

  /** Sends a request and returns the id that its reply will carry. */
  send(body: GuestRequest, deadline: Deadline): number {
    const id = nextCallId();
    this.expect(id, body.action);
    this.write(encodeRequest(id, body), deadline);
    return id;
  }

  /** An answer to a request that the caller encodes. */
  expect(id: number, action: GuestRequest['action']): void {
    this.#awaited.set(id, replyMaxBytes(action));
  }

  /** Sends frames that the caller has encoded, all in one write. */
  write(frames: Uint8Array, deadline: Deadline): void {
    try {
      native.sendFds(this.fd, frames, [], deadline.leftMs);
    } catch (error) {
      throw this.#broken(error, deadline);
    }
  }

  receive(id: number, deadline: Deadline): Record<string, unknown> {
    return this.#await((frame) => frame.type === FrameType.reply && frame.id === id, deadline);
  }

  call(body: GuestRequest, deadline: Deadline): Record<string, unknown> {
    return this.receive(this.send(body, deadline), deadline);
  }

  /** Reads once, without waiting longer than the deadline, and returns the frames that are whole now. */
  read(deadline: Deadline): Frame[] {
    let data: Uint8Array;
    // Who sends without end has always something to read.
    if (deadline.passed) throw this.#late(deadline);
    try {
      ({ data } = native.recvFds(this.fd, READ_BYTES, 0, deadline.leftMs));
    } catch (error) {
      if (errnoOf(error) === 'ETIMEDOUT' && !deadline.isOver) return [];
      throw this.#broken(error, deadline);
    }
    if (data.length === 0) throw this.#broken(new Error('the VM closed the connection'), deadline);
    try {
      return this.#decoder.push(data);
    } catch (error) {
      throw new ForkdError('AGENT_PROTOCOL', { target: this.name, reason: String(error) }, error);
    }
  }

  #await(fits: (frame: Frame) => boolean, deadline: Deadline): Record<string, unknown> {
    for (;;) {
      for (const frame of this.read(deadline)) if (fits(frame)) return this.parse(frame);
    }
  }

  /** Throws AGENT_PROTOCOL. */
  parse(frame: Frame): Record<string, unknown> {
    try {
      const body = parsePayload(frame);
      requireReply(body);
      return body;
    } catch (error) {
      throw new ForkdError('AGENT_PROTOCOL', { target: this.name, reason: String(error) }, error);
    }
  }

  #wants(type: number, id: number, length: number): boolean {
    const most = type === FrameType.hello ? limits.receiptMaxBytes : type === FrameType.reply && this.#awaited.get(id);
    if (!most) return false;
    if (length > most) throw new RangeError(`a frame of ${length} bytes`);
    return true;
  }

  #late(deadline: Deadline, cause?: unknown): ForkdError {
    return new ForkdError('AGENT_TIMEOUT', { target: this.name, seconds: deadline.totalMs / 1000 }, cause);
  }

  #broken(cause: unknown, deadline: Deadline): ForkdError {
    if (errnoOf(cause) === 'ETIMEDOUT') return this.#late(deadline, cause);
    return new ForkdError('AGENT_UNREACHABLE', { target: this.name, reason: 'the connection broke' }, cause);
  }
}
