/** A real daemon in a process of its own, for suites of its clients. */
import { join } from 'node:path';
import { CLI, start } from './cli.js';
import type { World } from './world.js';

export interface TestDaemon {
  pid: number;
  url: string;
  socketPath: string;
  /** What it had said by the time it listened. */
  said: string;
  /** Nobody reads any more what it says. */
  hangUp(): void;
  /** Ends it and everything it made; resolves to its exit code. */
  stop(): Promise<number | null>;
}

/** Any free port; the socket is where clients look for it in this world. */
export const startDaemon = async (
  world: World,
  args: string[] = [],
  { env = {} }: { env?: Record<string, string> } = {},
): Promise<TestDaemon> => {
  const socketPath = join(world.env.XDG_DATA_HOME, 'forkd/controller.sock');
  const own = ['--bind', '127.0.0.1:0', '--socket', socketPath, '--audit-log', join(world.root, 'audit.log')];
  const running = start(process.execPath, [join(CLI, '../controller.js'), 'serve', ...own, ...args], {
    env: { ...world.env, ...env },
    timeoutMs: 200_000,
  });
  const said = await running.says(/listening on port \d+/);
  const stop = async () => {
    running.kill('SIGTERM');
    return (await running.ended).code;
  };
  const port = /listening on port (\d+)/.exec(said)?.[1];
  return { pid: running.pid, url: `http://127.0.0.1:${port}`, socketPath, said, hangUp: running.hangUp, stop };
};
