/** One suite in a process of its own, under a timeout: a hung or crashed one takes no other with it. */
import { spawn } from 'node:child_process';

const TIMEOUT_MS = 420_000;

export interface Outcome {
  passed: number;
  failed: number;
  ms: number;
  /** One line, then everything that was said if anything failed. */
  report: string;
}

/** Runs a compiled suite. Never rejects: a suite that cannot be started has failed. */
export const runSuite = async (name: string, file: string, env: NodeJS.ProcessEnv): Promise<Outcome> => {
  const began = performance.now();
  const { output, end } = await run(file, env);
  const ms = performance.now() - began;
  const counts = (label: string) => Number(new RegExp(`^\\s*${label}:\\s+(\\d+)`, 'm').exec(output)?.[1] ?? 0);
  const [total, passed] = [counts('Total'), counts('Passed')];
  const problem = whatIsWrong(total, passed + counts('Skipped'), output, end);
  const failed = problem === undefined ? 0 : Math.max(total - passed - counts('Skipped'), 1);
  const line = `${failed === 0 ? 'ok  ' : 'FAIL'} ${name} ${passed}/${total} ${(ms / 1000).toFixed(1)} s`;
  return { passed, failed, ms, report: problem === undefined ? line : `${line}\n${output}\n${name}: ${problem}\n` };
};

/** Why a suite has not passed, in words; undefined when it has. uvu's last lines count what was run. */
const whatIsWrong = (total: number, done: number, output: string, end: string): string | undefined => {
  if (/^\s*Total:/m.test(output)) {
    if (total === 0) return 'it ran no test';
    if (done < total) return `${total - done} of its ${total} tests failed, or were not run`;
    return end === 'exit code 0' ? undefined : `all tests passed, and yet it ended with ${end}`;
  }
  const ran = (output.match(/[•✘]/g) ?? []).length;
  return `it ended with ${end} after ${ran} tests, before it could count them`;
};

/** A suite that ended early may have left a daemon, which ends its sandboxes when it is told to. */
const endRest = (group: number | undefined): void => {
  try {
    if (group !== undefined) process.kill(-group, 'SIGTERM');
  } catch {
    // Nobody is left, as it should be.
  }
};

const run = (file: string, env: NodeJS.ProcessEnv): Promise<{ output: string; end: string }> =>
  new Promise((resolve) => {
    const child = spawn(process.execPath, [file], { env, stdio: ['ignore', 'pipe', 'pipe'], detached: true });
    const parts: Buffer[] = [];
    child.stdout.on('data', (part: Buffer) => parts.push(part));
    child.stderr.on('data', (part: Buffer) => parts.push(part));
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      if (child.pid) process.kill(-child.pid, 'SIGKILL');
    }, TIMEOUT_MS);
    const settle = (end: string) => {
      clearTimeout(timer);
      endRest(child.pid);
      resolve({ output: Buffer.concat(parts).toString('utf8'), end });
    };
    child.on('error', (error) => settle(error.message));
    child.on('close', (code, signal) => {
      if (late) settle(`a kill, since it had not ended within ${TIMEOUT_MS / 1000} s`);
      else settle(signal ? `signal ${signal}` : `exit code ${code}`);
    });
  });
