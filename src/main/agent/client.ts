/** The framed agent protocol, asynchronous, for sandboxes that live in the main thread. Any number of calls may be under way. */
import { Socket } from 'node:net';
import { nextCallId } from '../../contract/call-ids.js';
import { ForkdError } from '../../contract/errors.js';
import { encodeRequest, FrameDecoder, parsePayload } from '../../contract/frames.js';
import { FrameType, type GuestReply, type GuestRequest } from '../../contract/guest.js';

interface Waiting {
  resolve: (reply: GuestReply) => void;
  reject: (error: ForkdError) => void;
  timer: NodeJS.Timeout | undefined;
}

export class AgentClient {
  readonly #socket: Socket;
  readonly #decoder = new FrameDecoder(true);
  readonly #waiting = new Map<number, Waiting>();
  #broken: ForkdError | undefined;

  /** Takes over the descriptor and closes it in the end. */
  constructor(
    fd: number,
    readonly name: string,
  ) {
    this.#socket = new Socket({ fd, readable: true, writable: true });
    this.#socket.on('data', (data) => this.#read(data));
    this.#socket.on('error', (error) => this.#fail(this.#unreachable(error.message)));
    this.#socket.on('close', () => this.#fail(this.#unreachable('the sandbox has ended')));
    this.#socket.unref();
  }

  /** Throws AGENT_UNREACHABLE, AGENT_TIMEOUT, AGENT_PROTOCOL. A timeout of 0 waits for as long as the sandbox lives. */
  call(request: GuestRequest, timeoutMs: number): Promise<GuestReply> {
    return new Promise((resolve, reject) => {
      if (this.#broken) return reject(this.#broken);
      const id = nextCallId();
      const late = () => {
        this.#waiting.delete(id);
        this.#release();
        reject(new ForkdError('AGENT_TIMEOUT', { target: this.name, seconds: timeoutMs / 1000 }));
      };
      const timer = timeoutMs > 0 ? setTimeout(late, timeoutMs) : undefined;
      this.#waiting.set(id, { resolve, reject, timer });
      this.#socket.ref();
      this.#socket.write(encodeRequest(id, request));
    });
  }

  close(): void {
    this.#socket.destroy();
  }

  #read(data: Uint8Array): void {
    try {
      for (const frame of this.#decoder.push(data)) {
        const waiting = frame.type === FrameType.reply ? this.#waiting.get(frame.id) : undefined;
        if (!waiting) continue;
        this.#waiting.delete(frame.id);
        clearTimeout(waiting.timer);
        this.#release();
        waiting.resolve(parsePayload(frame) as unknown as GuestReply);
      }
    } catch (error) {
      this.#fail(new ForkdError('AGENT_PROTOCOL', { target: this.name, reason: String(error) }, error));
      this.#socket.destroy();
    }
  }

  /** An idle sandbox must not keep the process alive. */
  #release(): void {
    if (this.#waiting.size === 0) this.#socket.unref();
  }

  #unreachable(reason: string): ForkdError {
    return new ForkdError('AGENT_UNREACHABLE', { target: this.name, reason });
  }

  #fail(error: ForkdError): void {
    this.#broken ??= error;
    for (const { reject, timer } of this.#waiting.values()) {
      clearTimeout(timer);
      reject(error);
    }
    this.#waiting.clear();
  }
}
