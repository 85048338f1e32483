/** The sandboxes of an engine that live, and what has yet to settle for them: groups that they join, work directories that go when they have ended. */
import { ForkdError } from '../../contract/errors.js';
import type { Pool } from '../pool.js';
import { joinGroups } from './join.js';
import type { Publisher } from './publisher.js';
import type { Sandbox } from './sandbox.js';

export class Roster {
  readonly #pool: Pool;
  readonly #publisher: Pick<Publisher, 'forget'>;
  readonly #sandboxes = new Map<string, Sandbox>();
  readonly #joining = new Set<Promise<void>>();
  readonly #closing = new Set<Promise<void>>();

  constructor(pool: Pool, publisher: Pick<Publisher, 'forget'>) {
    this.#pool = pool;
    this.#publisher = publisher;
  }

  /** Throws SANDBOX_NOT_FOUND. */
  get(id: string): Sandbox {
    const sandbox = this.#sandboxes.get(id);
    if (!sandbox) throw new ForkdError('SANDBOX_NOT_FOUND', { id });
    return sandbox;
  }

  get all(): Sandbox[] {
    return [...this.#sandboxes.values()];
  }

  add(sandbox: Sandbox): void {
    this.#sandboxes.set(sandbox.id, sandbox);
  }

  /** It has ended. */
  forget(sandbox: Sandbox): void {
    this.#sandboxes.delete(sandbox.id);
    this.#publisher.forget(sandbox.id);
  }

  /** To the groups that they were not born in. */
  join(sandboxes: Sandbox[]): void {
    const joining = joinGroups(this.#pool, sandboxes).finally(() => this.#joining.delete(joining));
    this.#joining.add(joining);
  }

  /** A fan-out's work directory goes with the last of its children. */
  closeWithLast(sandboxes: Sandbox[], close: () => void): void {
    const last = Promise.all(sandboxes.map((sandbox) => sandbox.ended)).then(() => {
      close();
      this.#closing.delete(last);
    });
    this.#closing.add(last);
  }

  async joined(): Promise<void> {
    await Promise.allSettled(this.#joining);
  }

  /** Work directories of sandboxes that have ended are gone. */
  async closed(): Promise<void> {
    await Promise.all(this.#closing);
  }
}
