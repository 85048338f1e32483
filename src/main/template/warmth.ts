/**
 * How much warming pays. A round costs what a child's first moments cost; each makes the code that children share a
 * little more complete. A one-shot command warms as long as its own children pay it back; a resident template is warmed
 * in full, since everybody after profits. docs/decisions/0013-how-much-to-warm.md has the reasons.
 */

/** Children from which on a one-shot command is faster with a template: starting one costs about one cold restore. */
export const HOT_FROM = 2;

/** Rounds of a template that stays, unless the environment says otherwise: fewer, and it is there sooner, its children slower. */
const RESIDENT_ROUNDS = Number(process.env['FORKD_WARM_ROUNDS']) || 30;

const LEAST_ROUNDS = 2;

export const warmRounds = (n: number, resident: boolean): number =>
  Math.max(LEAST_ROUNDS, resident ? RESIDENT_ROUNDS : Math.min(RESIDENT_ROUNDS, Math.ceil(n / 6)));
