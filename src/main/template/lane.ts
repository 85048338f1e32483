/** One frozen process of a template. Fan-outs take turns at it. */
import { ForkdError } from '../../contract/errors.js';
import type { SourcePort } from '../../contract/task.js';
import { end } from '../sandbox/end.js';
import type { Sandbox } from '../sandbox/sandbox.js';

export class Lane {
  #users = 0;

  constructor(
    readonly port: SourcePort,
    readonly vm: Sandbox,
  ) {}

  get isBusy(): boolean {
    return this.#users > 0;
  }

  /** Runs `use` after everyone who came before. */
  async take<T>(use: (port: SourcePort) => Promise<T>): Promise<T> {
    this.#users++;
    try {
      return await this.vm.lend(() => this.vm.inTurn(() => this.#talk(use)));
    } finally {
      this.#users--;
    }
  }

  /**
   * A worker that dies leaves the conversation in the middle: requests that nobody counts, children that nobody has heard of.
   * The process is ended, so that it makes no more of them; whoever comes next finds a dead template, and a new one is made.
   */
  async #talk<T>(use: (port: SourcePort) => Promise<T>): Promise<T> {
    try {
      return await use(this.port);
    } catch (error) {
      if (error instanceof ForkdError && error.code === 'WORKER_DIED') await end([this.vm]);
      throw error;
    }
  }
}
