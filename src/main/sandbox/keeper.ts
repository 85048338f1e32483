/**
 * The keeper: a small process that holds duplicates of acknowledged sandboxes' descriptors, so that the daemon that comes after
 * one that was killed can take them back (docs/decisions/0028). A machine that is kept lives on without its daemon; one that is
 * not ends with it. src/native/keeper/keeper.c is the other side.
 */
import { closeSync, openSync } from 'node:fs';
import { basename, dirname } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { keeperPath, native } from '../../native/binding.js';

/** What is held of one sandbox. */
export interface KeptFds {
  /** Its shim's control socket or its tether: the machine ends when nobody holds it any more. */
  life: number;
  qmp: number;
  agent: number;
  /** The lock of its work directory: a duplicate shares the flock(2). */
  lock: number;
}

const FDS = 4;
/** Entries in one message: SCM_RIGHTS carries at most 253 descriptors. */
const BATCH = 62;
/** The keeper does little, and at once; a host without a free processor may need a while. */
const ANSWER_MS = 30_000;
const PACKET_BYTES = 256;
/** Descriptor of the connection that a keeper is born with. */
const FIRST_CLIENT = 3;

const utf8 = new TextEncoder();
const text = new TextDecoder();

export class Keeper {
  #socket: number | undefined;
  #unwatch: (() => void) | undefined;
  readonly #kept = new Map<string, KeptFds>();

  /** `path` of the socket where a later daemon finds it. `onProblem` is told when it has ended, and what came of that. */
  constructor(
    readonly path: string,
    readonly onProblem: (reason: string) => void,
  ) {}

  /**
   * What the keeper of an earlier daemon holds, by name; duplicates that belong to the caller. Empty when there is none. Throws
   * KEEPER_SILENT: what it holds is still alive then.
   */
  takeOver(): Map<string, KeptFds> {
    const found = new Map<string, KeptFds>();
    try {
      this.#socket = connectTo(this.path);
      this.#greeted();
      this.#send('L', []);
      for (;;) {
        const { type, rest, fds } = this.#receive();
        if (type === '.') return found;
        const [life, qmp, agent, lock] = fds;
        if (life !== undefined && qmp !== undefined && agent !== undefined && lock !== undefined)
          found.set(rest, { life, qmp, agent, lock });
        else for (const fd of fds) native.fdClose(fd);
      }
    } catch (error) {
      this.#hangUp();
      if (['ENOENT', 'ECONNREFUSED'].includes(errnoOf(error) ?? '')) return found;
      for (const fds of found.values()) for (const fd of Object.values(fds)) native.fdClose(fd);
      throw new ForkdError('KEEPER_SILENT', { path: this.path, reason: reasonOf(error) }, error);
    }
  }

  /** Returns when all are held. The descriptors stay the caller's, and open until `drop`. Throws KEEPER_FAILED. */
  keep(entries: [name: string, fds: KeptFds][]): void {
    for (const [name, fds] of entries) this.#kept.set(name, fds);
    if (this.#socket !== undefined && this.#handed(entries)) return;
    try {
      this.#start();
    } catch (error) {
      for (const [name] of entries) this.#kept.delete(name);
      this.#hangUp();
      throw new ForkdError('KEEPER_FAILED', { reason: reasonOf(error) }, error);
    }
  }

  /** What `takeOver` gave is somebody's again: from now on as if it had been given to `keep`. */
  adopt(name: string, fds: KeptFds): void {
    this.#kept.set(name, fds);
  }

  drop(names: string[]): void {
    const known = names.filter((name) => this.#kept.delete(name));
    this.forget(known);
  }

  /** As `drop`, of what an earlier daemon left. */
  forget(names: string[]): void {
    if (this.#socket === undefined || names.length === 0) return;
    try {
      for (const batch of batches(names)) this.#send('D', batch);
    } catch (error) {
      this.onProblem(`the keeper does not answer: ${reasonOf(error)}`);
    }
  }

  /** It goes on holding what was not dropped; if that is nothing, it ends. */
  close(): void {
    this.#hangUp();
  }

  #start(): void {
    const [ours, theirs] = native.socketPair('seqpacket');
    const null_ = openSync('/dev/null', 'r+');
    try {
      const { pidfd } = native.spawn({
        file: keeperPath,
        args: [keeperPath, this.path],
        env: [],
        fds: [
          [null_, 0],
          [null_, 1],
          [null_, 2],
          [theirs, FIRST_CLIENT],
        ],
      });
      native.fdClose(pidfd);
      this.#socket = ours;
    } catch (error) {
      native.fdClose(ours);
      throw error;
    } finally {
      native.fdClose(theirs);
      closeSync(null_);
    }
    this.#greeted();
    this.#hand([...this.#kept]);
  }

  #greeted(): void {
    const { type, rest } = this.#receive();
    if (type !== 'H') throw new Error(`it cannot listen on ${this.path}: ${rest}`);
    const pidfd = native.pidfdOpen(Number(rest));
    this.#unwatch = native.pidfdWatch(pidfd, () => this.#ended());
    native.fdClose(pidfd);
  }

  /** Whatever ended it, what it held is still open here: another holds it from now on. */
  #ended(): void {
    this.#hangUp();
    if (this.#kept.size === 0) return;
    try {
      this.#start();
      this.onProblem('the keeper of sandboxes has ended; another was started');
    } catch (error) {
      this.#hangUp();
      this.onProblem(`sandboxes will not outlive this daemon: no keeper can be started: ${reasonOf(error)}`);
    }
  }

  /** False when it is of no more use. */
  #handed(entries: [string, KeptFds][]): boolean {
    try {
      this.#hand(entries);
      return true;
    } catch {
      this.#hangUp();
      return false;
    }
  }

  #hand(entries: [string, KeptFds][]): void {
    const all = batches(entries);
    for (const batch of all) {
      const fds = batch.flatMap(([, { life, qmp, agent, lock }]) => [life, qmp, agent, lock]);
      this.#send(
        'K',
        batch.map(([name]) => name),
        fds,
      );
    }
    for (const _ of all) if (this.#receive().type !== 'k') throw new Error('it could not take all descriptors');
  }

  #send(type: string, names: string[], fds: number[] = []): void {
    native.sendFds(this.#open, utf8.encode(type + names.map((name) => `${name}\n`).join('')), fds, ANSWER_MS);
  }

  #receive(): { type: string; rest: string; fds: number[] } {
    const { data, fds } = native.recvFds(this.#open, PACKET_BYTES, FDS, ANSWER_MS);
    if (data.length === 0) throw new Error('it has ended');
    const all = text.decode(data);
    return { type: all.slice(0, 1), rest: all.slice(1), fds };
  }

  get #open(): number {
    if (this.#socket === undefined) throw new Error('it has ended');
    return this.#socket;
  }

  #hangUp(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    if (this.#socket !== undefined) native.fdClose(this.#socket);
    this.#socket = undefined;
  }
}

const batches = <T>(all: T[]): T[][] =>
  Array.from({ length: Math.ceil(all.length / BATCH) }, (_, i) => all.slice(i * BATCH, (i + 1) * BATCH));

/** By way of its directory: the address of a socket holds 107 bytes, a path may be longer. */
const connectTo = (path: string): number => {
  const dir = openSync(dirname(path), 'r');
  try {
    return native.unixConnect(`/proc/self/fd/${dir}/${basename(path)}`);
  } finally {
    closeSync(dir);
  }
};
