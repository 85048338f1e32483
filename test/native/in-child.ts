import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/**
 * Runs scenario/<name>.ts in a Node process of its own and returns what it printed, one JSON value. What may crash or hang
 * belongs there: a crash fails one test, and a hang ends at the timeout.
 */
export function inChild(name: string, timeoutMs = 60_000, args: string[] = []): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const limits = { timeout: timeoutMs, killSignal: 'SIGKILL' } as const;
    execFile(process.execPath, [scenarioPath(name), ...args], limits, (error, stdout, stderr) => {
      if (error)
        reject(
          new Error(
            `scenario ${name} ${args.join(' ')}: ${error.message} (signal ${error.signal})\n${stdout}${stderr}`,
          ),
        );
      else resolve(JSON.parse(stdout));
    });
  });
}

export function scenarioPath(name: string): string {
  return fileURLToPath(new URL(`./scenario/${name}.js`, import.meta.url));
}
