/**
 * One Unix socket at which an engine offers the agents of all of its sandboxes. A connection begins with a line that is the id of
 * one; from there on it is a connection to that agent, as if it had a socket of its own, or says that there is none. One for each would
 * cost a descriptor and an inode each, and a file system that has just deleted many looks long for a free inode (docs/decisions/0096).
 */
import { rmSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { limits } from '../../contract/limits.js';
import { isSandboxId } from '../../contract/names.js';
import type { AgentClient } from './client.js';
import type { Judge } from './judge.js';
import { answer, NOBODY } from './line.js';

/** sun_path, unix(7): 108 bytes with the final zero. */
export const SOCKET_PATH_MAX = 107;
/** The line that names the sandbox; no id is longer. */
const NAME_MAX_BYTES = 64;
const NEWLINE = 10;

export class Switchboard {
  readonly #agents = new Map<string, AgentClient>();
  /** Connections that have not said yet whom they mean, the oldest first, and since when. */
  readonly #nameless = new Map<Socket, number>();
  #thinning: NodeJS.Timeout | undefined;

  private constructor(
    readonly path: string,
    readonly server: Server,
    readonly judge: Judge,
  ) {}

  /** Throws what bind(2) does. A socket that an engine before this one left at `path` is replaced. It is for this user alone. */
  static open(path: string, judge: Judge): Promise<Switchboard> {
    rmSync(path, { force: true });
    return new Promise((resolve, reject) => {
      const server = createServer({ allowHalfOpen: true }, (socket) => board.#connect(socket));
      const board = new Switchboard(path, server, judge);
      server.maxConnections = limits.agentConnectionsMax;
      server.unref();
      // It stays: a connection that could not be accepted is an error too.
      server.on('error', reject);
      // The socket is born with the mode that it keeps: it is bound before `listen` returns.
      const mask = process.umask(0o177);
      try {
        server.listen({ path, backlog: limits.agentConnectionsMax }, () => resolve(board));
      } finally {
        process.umask(mask);
      }
    });
  }

  offer(id: string, agent: AgentClient): void {
    this.#agents.set(id, agent);
  }

  /** True when it was offered. */
  withdraw(id: string): boolean {
    return this.#agents.delete(id);
  }

  has(id: string): boolean {
    return this.#agents.has(id);
  }

  /** Connections that are made already go on. */
  close(): void {
    this.server.close();
  }

  #connect(socket: Socket): void {
    let read = Buffer.alloc(0);
    const drop = () => void socket.destroy();
    const late = setTimeout(drop, limits.agentNameMs).unref();
    const settle = () => {
      clearTimeout(late);
      this.#nameless.delete(socket);
    };
    const take = (part: Buffer): void => {
      read = Buffer.concat([read, part]);
      const end = read.indexOf(NEWLINE);
      if (end < 0 && read.length <= NAME_MAX_BYTES) return;
      socket.off('data', take);
      const name = end < 0 ? '' : read.toString('latin1', 0, end);
      const agent = this.#agents.get(name);
      if (agent) {
        settle();
        socket.off('error', drop).off('end', drop).off('close', settle);
        answer(socket, agent, this.judge, read.subarray(end + 1));
      } else if (isSandboxId(name)) {
        refuse();
      } else {
        drop();
      }
    };
    // What else it says is read and forgotten: closed with bytes unread, it would be a connection that broke. It counts as nameless until it goes.
    const refuse = () => {
      socket.off('end', drop).resume().end(NOBODY);
    };
    socket.on('data', take).on('error', drop).on('end', drop).on('close', settle);
    this.#nameless.set(socket, performance.now());
    this.#watch();
  }

  /** While there are too many that name nobody: until the grace of the oldest is over. */
  #watch(): void {
    const [since] = this.#nameless.values();
    if (since === undefined || this.#nameless.size <= limits.agentNamelessMax || this.#thinning) return;
    const leftMs = since + limits.agentNameGraceMs - performance.now();
    // This thread may have been busy all the while: what has come is read before.
    const thin = () => void setImmediate(() => this.#thin());
    this.#thinning = setTimeout(thin, Math.max(leftMs, 0)).unref();
  }

  #thin(): void {
    this.#thinning = undefined;
    const before = performance.now() - limits.agentNameGraceMs;
    for (const [socket, since] of this.#nameless) {
      if (since > before || this.#nameless.size <= limits.agentNamelessMax) break;
      this.#nameless.delete(socket);
      socket.destroy();
    }
    this.#watch();
  }
}
