/** How many snapshots may be written at once. */
import { ForkdError } from '../../contract/errors.js';

export class Slots {
  #taken = 0;

  constructor(readonly max: number) {}

  get taken(): number {
    return this.#taken;
  }

  /** The caller gives it back by what is returned. Throws BRANCHES_FULL. */
  enter(): () => void {
    if (this.#taken >= this.max) throw new ForkdError('BRANCHES_FULL', { max: this.max });
    this.#taken++;
    let isHeld = true;
    return () => {
      if (isHeld) this.#taken--;
      isHeld = false;
    };
  }
}
