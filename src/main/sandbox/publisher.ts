/** What makes an engine's sandboxes reachable for other processes: one socket for all of them, and a record each. */
import type { Judge } from '../agent/judge.js';
import { SOCKET_PATH_MAX, Switchboard } from '../agent/switchboard.js';
import { WorkDir } from '../host/workdir.js';
import { sandboxesDir } from '../paths.js';
import { Records } from './registry.js';
import type { Sandbox } from './sandbox.js';

export class Publisher {
  readonly #records = new Records(sandboxesDir());
  #board: Promise<Switchboard> | undefined;
  #dir: WorkDir | undefined;

  /** `path` of the socket; one in a work directory when absent, or too long. */
  constructor(
    readonly path: string | undefined,
    readonly judge: Judge,
  ) {}

  /** Throws what the file system throws. */
  async publish(sandboxes: Sandbox[]): Promise<void> {
    const board = await this.open();
    const fresh = sandboxes.filter(({ id, state }) => state === 'ready' && !board.has(id));
    for (const sandbox of fresh) {
      sandbox.socket = board.path;
      board.offer(sandbox.id, sandbox.agent);
    }
    this.#records.add(
      fresh.map((one) => ({ info: one.info(), socket: board.path, snapshotRoot: one.birth.snapshot?.memory_root })),
    );
  }

  /** The socket; else it is made for the first sandbox. Throws what the file system throws. */
  open(): Promise<Switchboard> {
    this.#board ??= this.#make().catch((error: unknown) => {
      this.#board = undefined;
      throw error;
    });
    return this.#board;
  }

  #make(): Promise<Switchboard> {
    const { path } = this;
    if (path !== undefined && Buffer.byteLength(path) <= SOCKET_PATH_MAX) return Switchboard.open(path, this.judge);
    this.#dir ??= WorkDir.create('engine', 'agents');
    return Switchboard.open(this.#dir.file('agents.sock'), this.judge);
  }

  /** It has ended. */
  forget(id: string): void {
    this.#board?.then(
      (board) => board.withdraw(id),
      () => undefined,
    );
    this.#records.remove(id);
  }

  /** Of those that live on, the records stay. */
  async close(): Promise<void> {
    (await this.#board)?.close();
    this.#records.close();
    this.#dir?.close();
  }
}
