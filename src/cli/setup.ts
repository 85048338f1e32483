/** What `doctor --fix` and `quickstart` share: say what will be done, ask, and do it with progress. */
import { createInterface } from 'node:readline';
import { ForkdError } from '../contract/errors.js';
import type { Engine } from '../main/engine.js';
import { applyFix, describeFix, type Fix } from '../main/host/doctor/index.js';
import type { Progress } from '../main/image/index.js';
import { Bar, detail, step } from './progress.js';

/** Asks on stderr; y or yes is yes, everything else, and an end of input, is no. Throws CANCELLED. */
export const confirm = async (question: string, signal: AbortSignal): Promise<boolean> => {
  // Not as a terminal, which would take Ctrl-C for itself: an interrupt must reach the program.
  const reader = createInterface({ input: process.stdin, terminal: false });
  process.stderr.write(`${question} [y/N] `);
  const answer = await new Promise<string>((resolve) => {
    reader.once('line', resolve);
    reader.once('close', () => resolve(''));
    signal.addEventListener('abort', () => resolve(''));
  });
  reader.close();
  if (signal.aborted) throw new ForkdError('CANCELLED');
  return /^(y|yes)$/i.test(answer.trim());
};

/** Lists what will be done and asks, unless `yes`. Throws NOT_CONFIRMED. */
export const confirmFixes = async (fixes: Fix[], yes: boolean, signal: AbortSignal): Promise<void> => {
  step('to be done:');
  for (const fix of fixes) detail(describeFix(fix));
  if (!yes && !(await confirm('Go on?', signal))) throw new ForkdError('NOT_CONFIRMED');
};

export const applyWithProgress = async (fix: Fix, engine: Engine, signal: AbortSignal): Promise<void> => {
  step(describeFix(fix));
  const progress = new StepProgress();
  try {
    await applyFix(fix, engine, { signal, onStep: detail, onProgress: progress.update });
  } finally {
    progress.end();
  }
};

/** Steps with a fraction: a bar on a terminal; elsewhere one line for each kind of step, not for each of fifty packages. */
export class StepProgress {
  readonly #bar = new Bar('   ');
  #kind = '';

  readonly update: Progress = (text, fraction) => {
    const kind = text.split(' ', 1)[0] ?? '';
    if (process.stderr.isTTY) this.#bar.update(Math.round(fraction * 100), 100, ` ${text}`.slice(0, 40));
    else if (kind !== this.#kind) detail(text);
    this.#kind = kind;
  };

  end(): void {
    this.#bar.end();
  }
}
