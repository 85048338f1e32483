/**
 * `npm test [NAME...]`: prepares the host (QEMU, guest image), boots one parent, then runs each suite in a process of its
 * own under a timeout, since uvu runs everything in one process and a hung or crashed suite would take the rest with it.
 * Ends with `N passed, N failed`.
 */
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { forkd } from './support/cli.js';
import { BASE_TAG } from './support/world.js';

const SUITE_TIMEOUT_MS = 180_000;
const here = import.meta.dirname;

const suites = (names: string[]): string[] =>
  readdirSync(here, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.test.js'))
    .filter((path) => names.length === 0 || names.some((name) => path.includes(name)))
    .sort();

interface Outcome {
  passed: number;
  failed: number;
}

/** Output of uvu, whose last lines count what was run. A suite that ran nothing has failed. */
const runSuite = (path: string, env: NodeJS.ProcessEnv): Promise<Outcome> =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, [join(here, path)], {
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    });
    let output = '';
    child.stdout.on('data', (data: Buffer) => {
      output += data.toString('utf8');
    });
    child.stderr.on('data', (data: Buffer) => {
      output += data.toString('utf8');
    });
    const timer = setTimeout(() => {
      output += `\n${path}: no end within ${SUITE_TIMEOUT_MS / 1000} s\n`;
      if (child.pid) process.kill(-child.pid, 'SIGKILL');
    }, SUITE_TIMEOUT_MS);
    const began = performance.now();
    child.on('close', (code) => {
      clearTimeout(timer);
      const count = (label: string) => Number(new RegExp(`^\\s*${label}:\\s+(\\d+)`, 'm').exec(output)?.[1] ?? 0);
      const total = count('Total');
      const passed = count('Passed');
      const failed = Math.max(total - passed - count('Skipped'), code === 0 && total > 0 ? 0 : 1);
      console.log(
        `${failed === 0 ? 'ok  ' : 'FAIL'} ${path} ${passed}/${total} ${((performance.now() - began) / 1000).toFixed(1)} s`,
      );
      if (failed > 0) console.log(output);
      resolve({ passed, failed });
    });
  });

const prepare = async (data: string): Promise<void> => {
  const timeoutMs = 600_000;
  const env = { XDG_DATA_HOME: data };
  const doctor = await forkd(['doctor', '--fix', '--yes'], { timeoutMs, env });
  console.log(doctor.stdout, doctor.stderr);
  const snapshot = await forkd(['snapshot', '--tag', BASE_TAG], { timeoutMs, env });
  console.log(snapshot.stdout, snapshot.stderr);
  if (snapshot.code !== 0) throw new Error('the parent snapshot could not be made');
};

const root = mkdtempSync(join(tmpdir(), 'forkd-test-'));
let passed = 0;
let failed = 0;
try {
  const names = process.argv.slice(2);
  const found = suites(names);
  const given = process.env['FORKD_TEST_DATA'];
  const data = given ?? join(root, 'data');
  if (!given) await prepare(data);
  for (const path of found) {
    const outcome = await runSuite(path, { ...process.env, FORKD_TEST_DATA: data });
    passed += outcome.passed;
    failed += outcome.failed;
  }
  if (found.length === 0) failed++;
} catch (error) {
  console.log(error);
  failed++;
} finally {
  rmSync(root, { recursive: true, force: true });
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 ? 0 : 1);
