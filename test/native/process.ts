import { readdirSync } from 'node:fs';
import { type ExitStatus, native, type SpawnOptions } from '../../src/native/binding.js';

/** Waits for the end of a process. The timer also keeps the event loop alive, which a watch alone does not. */
export function exitOf(pidfd: number, timeoutMs = 20_000): Promise<ExitStatus> {
  return new Promise((resolve, reject) => {
    const stop = native.pidfdWatch(pidfd, (status) => {
      clearTimeout(timer);
      resolve(status);
    });
    const timer = setTimeout(() => {
      stop();
      reject(new Error(`the process behind pidfd ${pidfd} has not ended after ${timeoutMs} ms`));
    }, timeoutMs);
  });
}

/** Runs a shell script to its end, with its output in a memfd. */
export async function runShell(
  script: string,
  options: Partial<SpawnOptions> = {},
): Promise<{ status: ExitStatus; output: string }> {
  const out = native.memfdCreate('output');
  const stdio: SpawnOptions['fds'] = [
    [out, 0],
    [out, 1],
    [out, 2],
  ];
  const { pidfd } = native.spawn({
    file: '/bin/sh',
    args: ['sh', '-c', script],
    env: ['PATH=/usr/bin:/bin'],
    ...options,
    fds: [...stdio, ...(options.fds ?? [])],
  });
  const status = await exitOf(pidfd);
  const bytes = new Uint8Array(native.fdSize(out).bytes);
  native.fdRead(out, bytes, 0);
  native.fdClose(out);
  native.fdClose(pidfd);
  return { status, output: new TextDecoder().decode(bytes) };
}

export function spawnSleep(dieWithParent = true): { pid: number; pidfd: number } {
  return native.spawn({ file: '/bin/sleep', args: ['sleep', '60'], env: [], fds: [], dieWithParent });
}

/** Open descriptors of this process, when libuv has let go of closing handles, as it does at the end of its turn. */
export async function settledFdCount(): Promise<number> {
  await new Promise((resolve) => setTimeout(resolve, 20));
  return fdCount();
}

/** Open descriptors of this process. */
export function fdCount(): number {
  return readdirSync('/proc/self/fd').length;
}
