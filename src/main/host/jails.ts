/** Which jail the VMs of an engine go to: the whole one, or what this kernel has turned out to allow. */
import { ForkdError } from '../../contract/errors.js';
import { jailProblem, type MakeJail, makeJail } from './jail.js';

export interface JailTerms {
  /** No jail at all: only a measurement of what it costs wants that. */
  none?: boolean;
  /** Nothing runs in less than the whole. */
  strict?: boolean;
  /** Told when VMs are held apart by less than before, and why. */
  onWeaker?: (reason: string) => void;
}

/** From the whole jail to what needs nobody's leave. */
const JAILS: MakeJail[] = [makeJail, (wishes) => makeJail({ ...wishes, callsOnly: true })];

export class Jails {
  /** How many of JAILS the kernel has refused. */
  #refused = 0;

  constructor(readonly terms: JailTerms) {}

  /** What jails are made by, as far as the kernel has let it be done so far; undefined for none. */
  get make(): MakeJail | undefined {
    return this.terms.none ? undefined : JAILS[this.#refused];
  }

  /**
   * A host may forbid what its capabilities would allow, as container runtimes do. Then VMs run in what is left of the jail from
   * there on, which is told; unless that was ruled out (STRICT_REFUSED). What `terms` say of one request goes before.
   */
  async use<T>(terms: Omit<JailTerms, 'none'>, work: (make: MakeJail | undefined) => Promise<T>): Promise<T> {
    const refused = this.#refused;
    try {
      return await work(this.make);
    } catch (error) {
      const problem = this.make ? jailProblem(ForkdError.from(error)) : undefined;
      if (problem === undefined) throw error;
      if (terms.strict || this.terms.strict) throw new ForkdError('STRICT_REFUSED', { missing: problem }, error);
      // Another request may have met the same meanwhile.
      this.#refused = Math.max(this.#refused, refused + 1);
      const left = this.make ? 'no jail but a filter of system calls' : 'no jail';
      (terms.onWeaker ?? this.terms.onWeaker)?.(`VMs run in ${left}: ${problem}`);
      return this.use(terms, work);
    }
  }
}
