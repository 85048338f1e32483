/**
 * Where a `forkd fork` that keeps its children is asked for what only it can do: they can be copied by their own process alone. A
 * Unix socket in a work directory of its own, which only this user can enter; one JSON line a connection, one back.
 */
import { existsSync } from 'node:fs';
import type { Server } from 'node:net';
import { dirname, join } from 'node:path';
import type { PromoteReport } from '../../contract/branches.js';
import { type ErrorData, ForkdError } from '../../contract/errors.js';
import { callLine, serveLines } from '../agent/line.js';
import type { Engine } from '../engine.js';
import { promoteSandbox } from '../promote-sandbox.js';
import { promote } from '../store/promote.js';
import type { Published } from './registry.js';

const DESK_FILE = 'desk.sock';
const CONNECT_MS = 5000;
/** Writing the memory of a guest to a slow disk. */
const REPLY_MS = 600_000;

interface PromoteOrder {
  id: string;
  as: string;
}

type Answer = { promoted: PromoteReport } | { failure: ErrorData };

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

  #answer(line: string): Promise<Answer> {
    const work = this.#promote(line).then(
      (promoted) => ({ promoted }),
      (error: unknown) => ({ failure: ForkdError.from(error).toData() }),
    );
    this.#under.add(work);
    void work.then(() => this.#under.delete(work));
    return work;
  }

  async #promote(line: string): Promise<PromoteReport> {
    const { id, as } = JSON.parse(line) as PromoteOrder;
    const { engine } = this;
    // A connection that was made before may bring its order later.
    if (this.#isClosing) throw new ForkdError('SANDBOX_NOT_FOUND', { id });
    const write = async (from: string): Promise<void> =>
      void (await (
        await engine.branchInto(id, { tag: from })
      ).written);
    return promoteSandbox(engine, write, async (from) => {
      const { dir, previous } = await promote(engine.store, { from, as, promotedFrom: id });
      return { tag: as, dir, promoted_from: id, ...(previous === undefined ? {} : { previous }) };
    });
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

/** Throws what promoting it throws, AGENT_UNREACHABLE, AGENT_TIMEOUT. */
export const promoteAt = async (desk: string, order: PromoteOrder): Promise<PromoteReport> => {
  const reply = await callLine({ path: desk }, `the command that keeps ${order.id}`, order, {
    connectMs: CONNECT_MS,
    replyMs: REPLY_MS,
  });
  const answer = reply as unknown as Answer;
  if ('failure' in answer) throw ForkdError.fromData(answer.failure);
  return answer.promoted;
};
