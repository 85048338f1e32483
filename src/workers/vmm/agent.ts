/** The framed agent protocol, blocking, for worker threads. The main thread has its own asynchronous client. */
import { nextCallId } from '../../contract/call-ids.js';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { encodeRequest, type Frame, FrameDecoder, parsePayload } from '../../contract/frames.js';
import { FrameType, type Hello } from '../../contract/guest.js';
import { native } from '../../native/binding.js';
import type { Deadline } from '../deadline.js';

const READ_BYTES = 256 * 1024;

export class AgentPort {
  // Any guest but a parent may have been copied in the middle of an answer to somebody else.
  #decoder = new FrameDecoder(true);

  constructor(
    readonly fd: number,
    readonly name: string,
  ) {}

  /** Waits for the frame that the agent sends once, when it is warm. */
  hello(deadline: Deadline): Hello {
    return this.#await((frame) => frame.type === FrameType.hello, deadline) as unknown as Hello;
  }

  /** Sends a request and returns the id that its reply will carry. */
  send(body: object, deadline: Deadline): number {
    const id = nextCallId();
    this.write(encodeRequest(id, body), deadline);
    return id;
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

  call(body: object, deadline: Deadline): Record<string, unknown> {
    return this.receive(this.send(body, deadline), deadline);
  }

  /** Reads once, without waiting longer than the deadline, and returns the frames that are whole now. */
  read(deadline: Deadline): Frame[] {
    let data: Uint8Array;
    try {
      ({ data } = native.recvFds(this.fd, READ_BYTES, 0, deadline.leftMs));
    } catch (error) {
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
      for (const frame of this.read(deadline)) if (fits(frame)) return this.#parse(frame);
    }
  }

  #parse(frame: Frame): Record<string, unknown> {
    try {
      return parsePayload(frame);
    } catch (error) {
      throw new ForkdError('AGENT_PROTOCOL', { target: this.name, reason: String(error) }, error);
    }
  }

  #broken(cause: unknown, deadline: Deadline): ForkdError {
    if (errnoOf(cause) === 'ETIMEDOUT') {
      return new ForkdError('AGENT_TIMEOUT', { target: this.name, seconds: deadline.totalMs / 1000 }, cause);
    }
    return new ForkdError('AGENT_UNREACHABLE', { target: this.name, reason: 'the connection broke' }, cause);
  }
}
