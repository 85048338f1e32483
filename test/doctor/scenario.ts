import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { ErrorData } from '../../src/contract/errors.js';

export interface Installed {
  steps: [step: string, fraction: number][];
  error: ErrorData | null;
  ms: number;
}

/** Calls installPackages in a process of its own: apt-get is found by that process's PATH, and a hang ends at the timeout. */
export function inScenario(env: Record<string, string>, packages: string[]): Promise<Installed> {
  const script = fileURLToPath(new URL('./install.js', import.meta.url));
  return new Promise((resolve, reject) => {
    execFile(
      process.execPath,
      [script, ...packages],
      { env, timeout: 60_000, killSignal: 'SIGKILL' },
      (error, stdout, stderr) => {
        if (error) reject(new Error(`${error.message}\n${stdout}${stderr}`));
        else resolve(JSON.parse(stdout) as Installed);
      },
    );
  });
}
