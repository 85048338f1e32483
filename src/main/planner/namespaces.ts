/**
 * Which network namespaces are taken: by sandboxes that live, and by forks under way. A namespace has one tap, which one
 * guest can hold.
 */
import type { Sandbox } from '../sandbox/sandbox.js';
import type { Plan } from './plan.js';

export class Namespaces {
  readonly #taken = new Set<string>();
  readonly #kept = new Set<string>();

  /** Nobody else is given this one, though no sandbox has it now. */
  keep(netns: string): void {
    this.#kept.add(netns);
  }

  letGo(netns: string): void {
    this.#kept.delete(netns);
  }

  /** What forks under way have been promised, what is kept, but for whom `own` is kept, and what these sandboxes have. */
  takenBy(sandboxes: Iterable<Sandbox>, own?: string): ReadonlySet<string> {
    const taken = new Set([...this.#kept].filter((netns) => netns !== own));
    for (const netns of this.#taken) taken.add(netns);
    for (const { birth, state } of sandboxes) if (birth.netns && state !== 'dead') taken.add(birth.netns);
    return taken;
  }

  /** Keeps those of a plan until its sandboxes, which have them from then on, are known or have failed. */
  async during<T>({ children }: Plan, fork: () => Promise<T>): Promise<T> {
    const promised = children.flatMap(({ netns }) => netns ?? []);
    for (const netns of promised) this.#taken.add(netns);
    try {
      return await fork();
    } finally {
      for (const netns of promised) this.#taken.delete(netns);
    }
  }
}
