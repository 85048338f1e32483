/** One frozen process of a template. Its control socket holds one conversation at a time: fan-outs take turns. */
import type { SourcePort } from '../../contract/task.js';
import type { Sandbox } from '../sandbox/sandbox.js';

export class Lane {
  #last: Promise<unknown> = Promise.resolve();
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
    const turn = this.#last.then(() => this.vm.lend(() => use(this.port)));
    this.#last = turn.catch(() => undefined);
    try {
      return await turn;
    } finally {
      this.#users--;
    }
  }
}
