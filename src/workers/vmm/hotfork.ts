/** The control socket of one shim, blocking, for worker threads. */
import { statSync } from 'node:fs';
import { CUSTODY_FDS_MAX } from '../../contract/custody.js';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import {
  Ask,
  Disposition,
  FREEZE_TRIM,
  type ForkEntry,
  HOTFORK_MAGIC,
  HOTFORK_PACKET_MAX,
  HOTFORK_VERSION,
  type JailTerms,
  Say,
  type TemplatePort,
} from '../../contract/hotfork.js';
import type { StartedVmm, Who } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import type { Deadline } from '../deadline.js';

const HEADER_BYTES = 8;

export interface Message {
  type: number;
  id: number;
  body: DataView;
  bytes: Uint8Array;
  fds: number[];
}

export interface Frozen {
  park_us: number;
  freeze_us: number;
  threads: number;
  descriptors: { fd: number; disposition: number }[];
}

export interface ForkedChild {
  index: number;
  /** In its own pid namespace. */
  pid: number;
  fork_us: number;
  pause_us: number;
  /** pidfd, then a peer for each pair entry, in the order of the request. The main thread's: it closes those that it is not told of. */
  fds: number[];
}

export class HotforkControl {
  #nextId = 1;

  constructor(
    readonly fd: number,
    readonly name: string,
    /** Without it no descriptor can be received. */
    readonly custody?: Int32Array,
  ) {}

  /** The first packet of a shim that was started, not forked. */
  hello(deadline: Deadline): { control: number } {
    const { body } = this.#expect(Say.hello, deadline);
    return { control: body.getInt32(24, true) };
  }

  /** All threads, and all children from then on. */
  jail({ flags, uid, gid }: JailTerms, deadline: Deadline): void {
    this.#send(Ask.jail, u32(flags, uid, gid), [], deadline);
    this.#expect(Say.jailed, deadline);
  }

  freeze(trim: boolean, deadline: Deadline): Frozen {
    this.#send(Ask.freeze, u32(trim ? FREEZE_TRIM : 0), [], deadline);
    const { body } = this.#expect(Say.frozen, deadline);
    const count = body.getUint32(12, true);
    return {
      park_us: body.getUint32(0, true),
      freeze_us: body.getUint32(4, true),
      threads: body.getUint32(8, true),
      descriptors: Array.from({ length: count }, (_, i) => ({
        fd: body.getInt32(16 + i * 12, true),
        disposition: body.getUint8(16 + i * 12 + 5),
      })),
    };
  }

  release(deadline: Deadline): void {
    this.#send(Ask.release, new Uint8Array(), [], deadline);
    this.#expect(Say.released, deadline);
  }

  /** Asks for one child without waiting: CHILD and DONE follow, in the order of the requests. Returns the request's id. */
  requestFork(index: number, flags: number, entries: ForkEntry[], given: number[], deadline: Deadline): number {
    return this.#send(Ask.fork, forkBody(index, flags, entries), given, deadline);
  }

  /** Forks one frozen copy of a running process, which goes on at once. */
  branch(flags: number, entries: ForkEntry[], given: number[], deadline: Deadline): ForkedChild {
    this.#send(Ask.branch, forkBody(0, flags, entries), given, deadline);
    const child = childOf(this.#expect(Say.child, deadline));
    this.#expect(Say.done, deadline);
    return child;
  }

  /**
   * After an engine that was killed in the middle of a conversation: asks for a sign, and drops what comes before it. A child that
   * nobody has taken ends when its descriptors are closed. `await` waits for the sign. Throws HOTFORK_BROKEN.
   */
  regain(deadline: Deadline): { await: () => void } {
    this.#send(Ask.status, new Uint8Array(), [], deadline);
    return {
      await: () => {
        while (!this.#isSign(deadline));
      },
    };
  }

  #isSign(deadline: Deadline): boolean {
    try {
      return this.receive(deadline).type === Say.state;
    } catch (error) {
      // A refusal, or a child: its descriptors were not taken.
      if (error instanceof ForkdError && (error.code === 'HOTFORK_REFUSED' || errnoOf(error.cause) === 'EMSGSIZE'))
        return false;
      throw error;
    }
  }

  /** The next packet. Throws HOTFORK_REFUSED when it is a refusal, HOTFORK_BROKEN when there is none. */
  receive(deadline: Deadline): Message {
    let received: { data: Uint8Array; fds: number[] };
    try {
      const most = this.custody ? CUSTODY_FDS_MAX : 0;
      received = native.recvFds(this.fd, HOTFORK_PACKET_MAX, most, deadline.leftMs, this.custody);
    } catch (error) {
      const late = errnoOf(error) === 'ETIMEDOUT';
      throw this.#broken(late ? `no answer within ${deadline.totalMs / 1000} s` : reasonOf(error), error);
    }
    const { data, fds } = received;
    if (data.length === 0) throw this.#broken(ENDED);
    const header = new DataView(data.buffer, data.byteOffset, data.byteLength);
    if (
      data.length < HEADER_BYTES ||
      header.getUint16(0, true) !== HOTFORK_MAGIC ||
      header.getUint8(2) !== HOTFORK_VERSION ||
      (fds.length > 0 && header.getUint8(3) !== Say.child)
    ) {
      throw this.#broken('it sent something that is not the protocol');
    }
    const bytes = data.subarray(HEADER_BYTES);
    const body = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const type = header.getUint8(3);
    if (type === Say.refused) throw refusal(this.name, body, bytes);
    return { type, id: header.getUint32(4, true), body, bytes, fds };
  }

  #expect(type: number, deadline: Deadline): Message {
    const message = this.receive(deadline);
    if (message.type !== type) throw this.#broken(`message ${message.type} came instead of ${type}`);
    return message;
  }

  #send(type: number, body: Uint8Array, fds: number[], deadline: Deadline): number {
    const id = this.#nextId++;
    const packet = new Uint8Array(HEADER_BYTES + body.length);
    const view = new DataView(packet.buffer);
    view.setUint16(0, HOTFORK_MAGIC, true);
    view.setUint8(2, HOTFORK_VERSION);
    view.setUint8(3, type);
    view.setUint32(4, id, true);
    packet.set(body, HEADER_BYTES);
    try {
      native.sendFds(this.fd, packet, fds, deadline.leftMs);
    } catch (error) {
      throw this.#broken(reasonOf(error), error);
    }
    return id;
  }

  #broken(reason: string, cause?: unknown): ForkdError {
    return new ForkdError('HOTFORK_BROKEN', { vm: this.name, reason }, cause);
  }
}

/** The other end of its socket is closed. */
const ENDED = 'it has ended';

/** Whether a shim did not answer because its process is gone. */
export const hasEnded = ({ code, details, cause }: ForkdError): boolean =>
  code === 'HOTFORK_BROKEN' && (details['reason'] === ENDED || ['EPIPE', 'ECONNRESET'].includes(errnoOf(cause) ?? ''));

/** Codes of a refusal whose `number` is a descriptor. */
const ABOUT_A_DESCRIPTOR = [4, 5];

const refusal = (vm: string, body: DataView, bytes: Uint8Array): ForkdError => {
  const code = body.getUint32(0, true);
  const number = body.getInt32(4, true);
  const text = new TextDecoder().decode(bytes.subarray(12));
  const detail = ABOUT_A_DESCRIPTOR.includes(code) ? ` (descriptor ${number})` : number > 0 ? ` (errno ${number})` : '';
  return new ForkdError('HOTFORK_REFUSED', { vm, reason: `${text}${detail}` });
};

/** Throws RangeError on a body that is too short. */
export const childOf = ({ body, fds }: Message): ForkedChild => ({
  index: body.getUint32(0, true),
  pid: body.getUint32(4, true),
  fork_us: body.getUint32(8, true),
  pause_us: body.getUint32(12, true),
  fds,
});

/** A child by our numbers and, where it has a pid namespace of its own, by its own. */
const whoIs = (pidfd: number, inner: number, { line }: TemplatePort): Who =>
  line === undefined ? { pid: inner } : { pid: native.pidfdPid(pidfd), inside: { pid: inner, line } };

/** A child as the main thread is told of it. Throws HOTFORK_BROKEN. */
export const bornOf = ({ pid, fds }: ForkedChild, index: number, name: string, port: TemplatePort) => {
  const [pidfd, controlFd, qmpFd, agentFd] = fds;
  if (pidfd === undefined || controlFd === undefined || qmpFd === undefined || agentFd === undefined)
    throw new ForkdError('HOTFORK_BROKEN', { vm: name, reason: 'descriptors are missing' });
  return { index, ...whoIs(pidfd, pid, port), pidfd, qmpFd, agentFd, controlFd } satisfies StartedVmm;
};

/** /dev/net/tun: major 10, minor 200 (Documentation/admin-guide/devices.txt). */
const TUN_DEVICE = (10 << 8) | 200;

/** What every descriptor that needs replacing is for: known by its number, or by the file that it is. */
export const sortDescriptors = (
  frozen: Frozen,
  pid: number,
  known: { control: number; qmp: number; agent: number },
  consolePath: string,
) => {
  const numbers = frozen.descriptors.filter((d) => d.disposition === Disposition.replace).map((d) => d.fd);
  const rest = numbers.filter((fd) => fd !== known.control && fd !== known.qmp && fd !== known.agent);
  // Not by its path: that of a file in a mount namespace that nothing is left of is cut short.
  const console = statSync(consolePath);
  const consoles: number[] = [];
  const taps: number[] = [];
  const others: number[] = [];
  for (const fd of rest) {
    const { dev, ino, rdev } = statSync(`/proc/${pid}/fd/${fd}`);
    const isConsole = dev === console.dev && ino === console.ino;
    (isConsole ? consoles : rdev === TUN_DEVICE ? taps : others).push(fd);
  }
  return { consoles, taps, others };
};

const u32 = (...values: number[]): Uint8Array => {
  const bytes = new Uint8Array(values.length * 4);
  const view = new DataView(bytes.buffer);
  for (const [i, value] of values.entries()) view.setUint32(i * 4, value >>> 0, true);
  return bytes;
};

const forkBody = (index: number, flags: number, entries: ForkEntry[]): Uint8Array =>
  u32(flags, 1, index, entries.length, ...entries.flatMap(({ fd, how }) => [fd, how]));
