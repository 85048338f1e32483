/** Which jail the VMs of an engine go to: the whole one, or what this kernel has turned out to allow. */
import { ForkdError } from '../../contract/errors.js';
import { isAboutPids, jailProblem, type MakeJail, makeJail } from './jail.js';

export interface JailTerms {
  /** No jail at all: only a measurement of what it costs wants that. */
  none?: boolean;
  /** As JailWishes. */
  outlivesEngine?: boolean;
  /** Nothing runs in less than the whole. */
  strict?: boolean;
  /** Told when VMs are held apart by less than before, and why. */
  onWeaker?: (reason: string) => void;
}

/** What is said of the jail with one request, or with all. */
export const termsOf = (
  { strict = false }: { strict?: boolean },
  { onWeaker }: Pick<JailTerms, 'onWeaker'>,
): Pick<JailTerms, 'strict' | 'onWeaker'> => ({ strict, ...(onWeaker ? { onWeaker } : {}) });

/** From the whole jail to what needs nobody's leave. */
const JAILS: { name: string; make?: MakeJail }[] = [
  { name: 'the whole jail', make: makeJail },
  { name: 'a jail without a pid namespace', make: (wishes) => makeJail({ ...wishes, sharesPids: true }) },
  { name: 'no jail but a filter of system calls', make: (wishes) => makeJail({ ...wishes, callsOnly: true }) },
  { name: 'no jail' },
];

export class Jails {
  /** How many of JAILS the kernel has refused. */
  #refused = 0;

  constructor(readonly terms: JailTerms) {}

  /** What jails are made by, as far as the kernel has let it be done so far; undefined for none. */
  get make(): MakeJail | undefined {
    const make = this.terms.none ? undefined : JAILS[this.#refused]?.make;
    const { outlivesEngine = false } = this.terms;
    return make && ((wishes) => make({ ...wishes, outlivesEngine }));
  }

  /**
   * A host may forbid what its capabilities would allow, as container runtimes do. Then VMs run in what is left of the jail from
   * there on, which is told; unless that was ruled out (STRICT_REFUSED). What `terms` say of one request goes before.
   */
  async use<T>(
    terms: Omit<JailTerms, 'none' | 'outlivesEngine'>,
    work: (make: MakeJail | undefined) => Promise<T>,
  ): Promise<T> {
    const refused = this.#refused;
    try {
      return await work(this.make);
    } catch (error) {
      const problem = this.make ? jailProblem(ForkdError.from(error)) : undefined;
      if (problem === undefined) throw error;
      if (terms.strict || this.terms.strict) throw new ForkdError('STRICT_REFUSED', { missing: problem }, error);
      // Another request may have met the same meanwhile.
      const next = refused === 0 && !isAboutPids(problem) ? 2 : refused + 1;
      this.#refused = Math.max(this.#refused, next);
      (terms.onWeaker ?? this.terms.onWeaker)?.(`VMs run in ${JAILS[this.#refused]?.name}: ${problem}`);
      return this.use(terms, work);
    }
  }
}
