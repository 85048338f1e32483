/**
 * Which network namespaces are taken: by sandboxes that live, and by forks under way. A namespace has one tap, which one
 * guest can hold.
 */
import type { Sandbox } from '../sandbox/sandbox.js';
import type { Plan } from './plan.js';

export class Namespaces {
  readonly #taken = new Set<string>();

  /** What forks under way have been promised, and what these sandboxes have. */
  takenBy(sandboxes: Iterable<Sandbox>): ReadonlySet<string> {
    const taken = new Set(this.#taken);
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
