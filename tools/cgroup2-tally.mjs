/** One check of tools/cgroup2-inside.mjs at a time; all its processes count into the same file, FORKD_TALLY. */
import { appendFileSync } from 'node:fs';

export const check = async (name, run) => {
  const began = performance.now();
  const failure = await Promise.resolve()
    .then(run)
    .then(
      () => undefined,
      (error) => error,
    );
  const ms = Math.round(performance.now() - began);
  console.log(failure === undefined ? `✓ ${name} (${ms} ms)` : `✗ ${name} (${ms} ms)\n${failure.stack}`);
  count(failure === undefined);
};

export const count = (isPassed) => appendFileSync(process.env.FORKD_TALLY, isPassed ? '+' : '-');

/** Waits for what somebody else does. */
export const soon = async (said, condition) => {
  for (let tries = 0; !condition(); tries++) {
    if (tries === 200) throw new Error(said);
    await new Promise((done) => setTimeout(done, 50));
  }
};
