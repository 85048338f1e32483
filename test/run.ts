/**
 * `npm test [NAME...]`: prepares the host (QEMU, guest image), boots one parent, and runs the suites, each in a process of its
 * own, since uvu runs everything in one process. Several run at a time. Ends with `N passed, N failed`.
 */
import { constants, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { cpus, tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { forkd } from './support/cli.js';
import { LANES, needsParent, runInLanes } from './support/lanes.js';
import { runSuite } from './support/run-suite.js';
import { BASE_TAG } from './support/world.js';

const here = import.meta.dirname;

const suites = (names: string[]): string[] =>
  readdirSync(here, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.test.js'))
    .filter((path) => names.length === 0 || names.some((name) => path.includes(name)));

const prepare = async (data: string): Promise<void> => {
  const timeoutMs = 600_000;
  const env = { XDG_DATA_HOME: data };
  const doctor = await forkd(['doctor', '--fix', '--yes'], { timeoutMs, env });
  console.log(doctor.stdout, doctor.stderr);
  const snapshot = await forkd(['snapshot', '--tag', BASE_TAG], { timeoutMs, env });
  console.log(snapshot.stdout, snapshot.stderr);
  if (snapshot.code !== 0) throw new Error('the parent snapshot could not be made');
};

/** Each lane has a copy of the parent, so that no suite meets the sandboxes and locks of one that runs beside it. */
const copyParent = (from: string, to: string): void => {
  for (const path of [`forkd/snapshots/${BASE_TAG}`, 'forkd/host.json']) {
    if (!existsSync(join(from, path))) continue;
    mkdirSync(dirname(join(to, path)), { recursive: true });
    cpSync(join(from, path), join(to, path), { recursive: true, mode: constants.COPYFILE_FICLONE });
  }
};

/** Processor time since the machine was started: what was used, and all there was. */
const processors = (): { used: number; all: number } => {
  const times = cpus().flatMap(({ times: { user, nice, sys, irq, idle } }) => [
    [user + nice + sys + irq, idle] as const,
  ]);
  const used = times.reduce((sum, [one]) => sum + one, 0);
  return { used, all: times.reduce((sum, [, idle]) => sum + idle, used) };
};

const root = mkdtempSync(join(tmpdir(), 'forkd-test-'));
const began = performance.now();
const before = processors();
let passed = 0;
const unwell: string[] = [];
let failed = 0;
try {
  const found = suites(process.argv.slice(2));
  if (found.length === 0) throw new Error('no suite of that name');
  const given = process.env['FORKD_TEST_DATA'];
  const made = given ?? join(root, 'parent');
  const lanes = Math.min(LANES, found.length);
  const laneData = (lane: number) => join(root, `lane-${lane}`);
  const getReady = async () => {
    if (!found.some(needsParent)) return;
    if (!given) await prepare(made);
    for (let lane = 0; lane < lanes; lane++) copyParent(made, laneData(lane));
  };
  await runInLanes(found, lanes, getReady(), async (suite, lane) => {
    // Barely warmed templates answer as rightly as others, and are there a second sooner.
    const env = { FORKD_WARM_ROUNDS: '3', ...process.env, FORKD_TEST_DATA: laneData(lane) };
    const outcome = await runSuite(suite, join(here, suite), env);
    console.log(outcome.report);
    passed += outcome.passed;
    failed += outcome.failed;
    if (outcome.failed > 0) unwell.push(suite);
  });
} catch (error) {
  console.log(error);
  failed++;
} finally {
  rmSync(root, { recursive: true, force: true });
}
if (unwell.length > 0) console.log(`failed: ${unwell.join(', ')}`);
const after = processors();
const busy = Math.round((100 * (after.used - before.used)) / (after.all - before.all || 1));
console.log(`${((performance.now() - began) / 1000).toFixed(0)} s, processors ${busy} % busy`);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
