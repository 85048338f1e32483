/**
 * uvu's `suite`, whose hooks say what they threw. uvu forgets it, and with it the tests that were then not run, and a test's
 * own error when the hook after it fails too.
 */
import { inspect } from 'node:util';
import { Assertion } from 'uvu/assert';
import { type Callback, suite as plain, type Test } from 'uvu';

/** Titles of the tests that have begun and not ended: a process that ends early, ends in one of them. */
const underWay = new Set<string>();
process.on('exit', () => {
  for (const title of underWay) console.error(`'${title}' was under way`);
});

/** How long a test may wait for what keeps no process alive, before that counts as waiting for nothing. */
const HOLD_MS = Number(process.env['FORKD_TEST_HOLD_MS'] ?? 120_000);

/** Much of what an engine waits for does not keep a process alive that has nothing else to do, as a test may have not. */
const held = async (work: () => unknown): Promise<void> => {
  const hold = setTimeout(() => undefined, HOLD_MS);
  try {
    await work();
  } finally {
    clearTimeout(hold);
  }
};

/** uvu takes `details` of an error for its own, fails over another's, and then forgets all tests from there on. */
const printable = (error: unknown): Error => {
  if (error instanceof Assertion) return error;
  if (!(error instanceof Error)) return new Error(`it threw ${inspect(error)}`);
  return Object.assign(new Error(error.message), { stack: error.stack });
};

export const suite = <T = Record<string, unknown>>(name: string): Test<T> => {
  const inner = plain<T>(name);
  let failure: { test: string; error: unknown } | undefined;

  const told =
    (when: string, hook: Callback<T>): Callback<T> =>
    async (context) => {
      try {
        await held(() => hook(context));
      } catch (error) {
        if (failure) console.error(`\n'${failure.test}' had failed:`, failure.error);
        console.error(`\n${name}: what runs ${when} threw:`, error);
        throw error;
      }
    };
  const hooks = (key: 'before' | 'after') =>
    Object.assign((hook: Callback<T>) => inner[key](told(`${key} all tests`, hook)), {
      each: (hook: Callback<T>) => inner[key].each(told(`${key} each test`, hook)),
    });
  const kept =
    (test: string, body: Callback<T>): Callback<T> =>
    async (context) => {
      failure = undefined;
      underWay.add(test);
      try {
        await held(() => body(context));
      } catch (error) {
        failure = { test, error };
        throw printable(error);
      } finally {
        underWay.delete(test);
      }
    };
  return Object.assign((test: string, body: Callback<T>) => inner(test, kept(test, body)), {
    only: (test: string, body: Callback<T>) => inner.only(test, kept(test, body)),
    skip: inner.skip,
    before: hooks('before'),
    after: hooks('after'),
    run: () => inner.run(),
  });
};
