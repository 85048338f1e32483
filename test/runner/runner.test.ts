/** The test runner: a suite that goes wrong says why, in whatever way it does. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { inOrder, runInLanes } from '../support/lanes.js';
import { type Outcome, runSuite } from '../support/run-suite.js';
import { suite } from '../support/suite.js';

const support = new URL('../support/suite.js', import.meta.url).href;

const runner = suite<{ dir: string }>('runner');

runner.before((context) => {
  context.dir = mkdtempSync(join(tmpdir(), 'runner-test-'));
});
runner.after(({ dir }) => rmSync(dir, { recursive: true, force: true }));

const SUITES: Record<string, [body: string, passed: number, failed: number, text: RegExp]> = {
  right: ["t('a', () => {}); t.run();", 1, 0, /^ok {3}right 1\/1 [\d.]+ s$/],
  wrong: ["t('a', () => {}); t('b', () => { throw new Error('own') }); t.run();", 1, 1, /"b"\s+own/],
  before: ["t.before(() => { throw new Error('hook') }); t('a', () => {}); t.run();", 0, 1, /before all.*Error: hook/],
  after: [
    "t.after.each(() => { throw new Error('hook') }); t('a', () => { throw new Error('own') }); t('b', () => {}); t.run();",
    0,
    2,
    /'a' had failed: Error: own[\s\S]*after each.*Error: hook/,
  ],
  waiting: [
    "t('a', () => {}); t('b', () => new Promise(() => {})); t.run();",
    0,
    1,
    /'b' was under way[\s\S]*exit code 1 after 1 tests/,
  ],
  killed: ["t('a', () => process.kill(process.pid, 'SIGKILL')); t.run();", 0, 1, /signal SIGKILL after 0 tests/],
  'not-run': ["t('a', () => {});", 0, 1, /before it could count|no test/],
  broken: ["throw new Error('not loaded')", 0, 1, /Error: not loaded[\s\S]*exit code 1/],
};

runner('says what went wrong', async ({ dir }) => {
  const outcomes = await Promise.all(
    Object.entries(SUITES).map(async ([name, [body]]): Promise<[string, Outcome]> => {
      const file = join(dir, `${name}.mjs`);
      writeFileSync(file, `import { suite } from '${support}'; var t = suite('${name}'); ${body}`);
      return [name, await runSuite(name, file, { ...process.env, NO_COLOR: '1', FORKD_TEST_HOLD_MS: '1' })];
    }),
  );
  for (const [name, { passed, failed, report }] of outcomes) {
    const [, rightlyPassed, rightlyFailed, text] = SUITES[name] as (typeof SUITES)[string];
    assert.equal([passed, failed], [rightlyPassed, rightlyFailed], report);
    assert.match(report, text);
  }
});

runner('long suites first; what needs no parent while it is made; each once', async () => {
  const suites = ['a/a.test.js', 'native/b.test.js', 'bench/smoke.test.js', 'store/c.test.js'];
  assert.is(inOrder(suites)[0], 'bench/smoke.test.js');
  const ran: string[] = [];
  let made = () => {};
  const ready = new Promise<void>((resolve) => {
    made = resolve;
  });
  await runInLanes(suites, 2, ready, async (one) => {
    ran.push(one);
    if (ran.length === 2) made();
  });
  assert.equal(ran.slice(0, 2).sort(), ['native/b.test.js', 'store/c.test.js']);
  assert.equal(ran.slice(2).sort(), ['a/a.test.js', 'bench/smoke.test.js']);
  const failed = runInLanes(suites, 2, Promise.reject(new Error('no parent')), async (one) => void ran.push(one));
  assert.is(await failed.catch((error: Error) => error.message), 'no parent');
  assert.is(ran.length, 6);
});

runner.run();
