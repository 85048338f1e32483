/**
 * Where a `forkd fork` that keeps its children takes orders (orders.ts): they can be copied, and their limits changed, by their own
 * process alone. A Unix socket in a work directory of its own, which only this user can enter; one JSON line a connection, one back.
 */
import { existsSync } from 'node:fs';
import type { Server } from 'node:net';
import { dirname, join } from 'node:path';
import { type ErrorData, ForkdError } from '../../contract/errors.js';
import { callLine, serveLines } from '../agent/line.js';
import type { Engine } from '../engine.js';
import { carryOut, type Order, type Reports } from './orders.js';
import type { Published } from './registry.js';

const DESK_FILE = 'desk.sock';
const CONNECT_MS = 5000;

type Answer<Report> = { report: Report } | { failure: ErrorData };

export class Desk {
  readonly #under = new Set<Promise<unknown>>();
  #isClosing = false;

  private constructor(readonly engine: Engine) {}

  /** For the sandboxes of this engine, which are published: beside the socket at which they are offered. */
  static async open(engine: Engine, besidePath: string): Promise<{ close: () => Promise<void> }> {
    const desk = new Desk(engine);
    const server = await serveLines(join(dirname(besidePath), DESK_FILE), (line) => desk.#answer(line));
    return { close: () => desk.#close(server) };
  }

  #answer(line: string): Promise<Answer<Reports[Order['what']]>> {
    const work = this.#carryOut(line).then(
      (report) => ({ report }),
      (error: unknown) => ({ failure: ForkdError.from(error).toData() }),
    );
    this.#under.add(work);
    void work.then(() => this.#under.delete(work));
    return work;
  }

  async #carryOut(line: string): Promise<Reports[Order['what']]> {
    const order = JSON.parse(line) as Order;
    // A connection that was made before may bring its order later.
    if (this.#isClosing) throw new ForkdError('SANDBOX_NOT_FOUND', { id: order.id });
    return carryOut(this.engine, order);
  }

  /** What is under way comes to its end, and nothing more is begun. */
  async #close(server: Server): Promise<void> {
    this.#isClosing = true;
    server.close();
    await Promise.all(this.#under);
  }
}

/** Undefined for a sandbox of a daemon. */
export const deskOf = ({ socket }: Published): string | undefined => {
  const path = join(dirname(socket), DESK_FILE);
  return existsSync(path) ? path : undefined;
};

/** Throws what carrying it out throws, AGENT_UNREACHABLE, AGENT_TIMEOUT. */
export const orderAt = async <O extends Order>(
  desk: string,
  order: O,
  replyMs: number,
): Promise<Reports[O['what']]> => {
  const timeouts = { connectMs: CONNECT_MS, replyMs };
  const reply = await callLine({ path: desk }, `the command that keeps ${order.id}`, order, timeouts);
  const answer = reply as unknown as Answer<Reports[O['what']]>;
  if ('failure' in answer) throw ForkdError.fromData(answer.failure);
  return answer.report;
};
