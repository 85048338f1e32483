/**
 * QMP, QEMU's control protocol (docs/interop/qmp-spec in its source): JSON objects, one a line.
 * Blocking, for worker threads: a task is one bounded step, and the descriptor outlives the task.
 */
import { ForkdError, errnoOf } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import type { Deadline } from '../deadline.js';

interface QmpMessage {
  QMP?: object;
  return?: unknown;
  error?: { class: string; desc: string };
  event?: string;
  data?: Record<string, unknown>;
}

const READ_BYTES = 64 * 1024;
const utf8 = new TextEncoder();

export class Qmp {
  #text = '';
  #decoder = new TextDecoder();
  #waiting: QmpMessage[] = [];

  constructor(
    readonly fd: number,
    readonly name: string,
    readonly deadline: Deadline,
  ) {}

  /** Waits for the greeting, which QEMU sends once its main loop runs, and leaves negotiation mode. */
  negotiate(): void {
    this.#until((message) => message.QMP !== undefined, 'greeting');
    this.run('qmp_capabilities');
  }

  /**
   * Readies a VM to save or load device state. RAM that is a shared file is left out of it (x-ignore-shared), and its
   * progress is told by events. Both sides must say the same, or the stream does not fit.
   */
  prepareMigration(): void {
    const capabilities = ['x-ignore-shared', 'events'].map((capability) => ({ capability, state: true }));
    this.run('migrate-set-capabilities', { capabilities });
  }

  /** Runs a command and returns its result. `fds` travel with it (SCM_RIGHTS), as `getfd` wants. */
  run(command: string, args?: object, fds: number[] = []): unknown {
    const line = utf8.encode(
      `${JSON.stringify(args ? { execute: command, arguments: args } : { execute: command })}\n`,
    );
    try {
      native.sendFds(this.fd, line, fds, this.deadline.leftMs);
    } catch (error) {
      throw this.#broken(command, error);
    }
    const message = this.#until((m) => m.return !== undefined || m.error !== undefined, command);
    if (message.error) throw new ForkdError('VMM_PROTOCOL', { vm: this.name, command, reason: message.error.desc });
    return message.return;
  }

  /** Waits for an event, also one that came while a command was under way. */
  event(name: string, fits: (data: Record<string, unknown>) => boolean = () => true): Record<string, unknown> {
    const matches = (m: QmpMessage) => m.event === name && fits(m.data ?? {});
    const early = this.#waiting.findIndex(matches);
    const message = early >= 0 ? this.#waiting.splice(early, 1)[0] : this.#until(matches, `event ${name}`);
    return message?.data ?? {};
  }

  #until(fits: (message: QmpMessage) => boolean, waitedFor: string): QmpMessage {
    for (;;) {
      const newline = this.#text.indexOf('\n');
      if (newline < 0) {
        this.#read(waitedFor);
        continue;
      }
      const message = JSON.parse(this.#text.slice(0, newline)) as QmpMessage;
      this.#text = this.#text.slice(newline + 1);
      if (fits(message)) return message;
      if (message.event) this.#waiting.push(message);
    }
  }

  #read(waitedFor: string): void {
    let data: Uint8Array;
    try {
      ({ data } = native.recvFds(this.fd, READ_BYTES, 0, this.deadline.leftMs));
    } catch (error) {
      throw this.#broken(waitedFor, error);
    }
    if (data.length === 0) throw this.#broken(waitedFor, new Error('QEMU closed the connection'));
    this.#text += this.#decoder.decode(data, { stream: true });
  }

  #broken(waitedFor: string, cause: unknown): ForkdError {
    const reason =
      errnoOf(cause) === 'ETIMEDOUT' ? `no answer within ${this.deadline.totalMs} ms` : 'the connection broke';
    return new ForkdError('VMM_PROTOCOL', { vm: this.name, command: waitedFor, reason }, cause);
  }
}
