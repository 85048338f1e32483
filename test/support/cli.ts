/** Runs the real `forkd` in a child process under a timeout. */
import { spawn } from 'node:child_process';
import { join } from 'node:path';

/** From dist/test/support. */
export const CLI = join(import.meta.dirname, '../../src/cli/main.js');

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
  ms: number;
}

export interface Running {
  pid: number;
  ended: Promise<Ended>;
  kill: (signal: NodeJS.Signals) => void;
  /** From now on nobody reads what it says: its next word is an EPIPE. */
  hangUp: () => void;
  /** Waits for text on stdout or stderr, and resolves to all that was said; rejects when the process ends without it. */
  says: (text: string | RegExp) => Promise<string>;
}

export interface CliOptions {
  env?: Record<string, string>;
  timeoutMs?: number;
  cwd?: string;
}

export const startCli = (args: string[], options: CliOptions = {}): Running =>
  start(process.execPath, [CLI, ...args], options);

export const forkd = (args: string[], options: CliOptions = {}): Promise<Ended> => startCli(args, options).ended;

export const start = (
  file: string,
  args: string[],
  { env = {}, timeoutMs = 120_000, cwd }: CliOptions = {},
): Running => {
  const began = performance.now();
  const child = spawn(file, args, {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...(cwd ? { cwd } : {}),
  });
  let stdout = '';
  let stderr = '';
  const listeners = new Set<() => void>();
  const heard = (write: (text: string) => void) => (data: Buffer) => {
    write(data.toString('utf8'));
    for (const listener of listeners) listener();
  };
  child.stdout.on(
    'data',
    heard((text) => {
      stdout += text;
    }),
  );
  child.stderr.on(
    'data',
    heard((text) => {
      stderr += text;
    }),
  );
  const timer = setTimeout(() => child.kill('SIGKILL'), timeoutMs);
  const ended = new Promise<Ended>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      resolve({ code, signal, stdout, stderr, ms: performance.now() - began });
      for (const listener of listeners) listener();
    });
  });
  const says = (text: string | RegExp) =>
    new Promise<string>((resolve, reject) => {
      const look = () => {
        const all = stdout + stderr;
        if (typeof text === 'string' ? all.includes(text) : text.test(all)) resolve(all);
        else if (child.exitCode !== null || child.signalCode !== null)
          reject(new Error(`ended without saying ${text}: ${all}`));
        else return;
        listeners.delete(look);
      };
      listeners.add(look);
      look();
    });
  const hangUp = () => {
    child.stdout.destroy();
    child.stderr.destroy();
  };
  return { pid: child.pid ?? 0, ended, kill: (signal) => void child.kill(signal), hangUp, says };
};

/** The lines of stdout as JSON. */
export const jsonLines = <T>(ended: Ended): T[] =>
  ended.stdout
    .split('\n')
    .filter((l) => l !== '')
    .map((l) => JSON.parse(l) as T);
