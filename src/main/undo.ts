/** What to take back when a later step fails. Steps are undone in reverse; one that fails does not stop the rest. */
export class Undo {
  #steps: (() => void | Promise<void>)[] = [];

  push(step: () => void | Promise<void>): void {
    this.#steps.push(step);
  }

  /** All went well: nothing will be taken back. */
  clear(): void {
    this.#steps.length = 0;
  }

  /** Returns what could not be undone. */
  async run(): Promise<unknown[]> {
    const errors: unknown[] = [];
    for (let step = this.#steps.pop(); step; step = this.#steps.pop()) {
      try {
        await step();
      } catch (error) {
        errors.push(error);
      }
    }
    return errors;
  }
}
