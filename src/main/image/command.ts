/** Runs the host tools that the builder needs, with their output kept for the error. */
import { spawn } from 'node:child_process';
import { ForkdError } from '../../contract/errors.js';

/** Tool to the Debian package that brings it. */
const PACKAGE_OF: Record<string, string> = {
  'apt-get': 'apt',
  'apt-cache': 'apt',
  'dpkg-deb': 'dpkg',
  'mkfs.ext4': 'e2fsprogs',
  debugfs: 'e2fsprogs',
  e2fsck: 'e2fsprogs',
  find: 'findutils',
  ldconfig: 'libc-bin',
  xz: 'xz-utils',
};

/** mkfs and ldconfig live where an ordinary user's PATH does not look. */
const PATH = `${process.env.PATH ?? ''}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin`;

export interface CommandOptions {
  cwd?: string;
  input?: Buffer;
  env?: Record<string, string>;
  signal?: AbortSignal | undefined;
}

export interface CommandResult {
  status: number;
  stdout: Buffer;
  stderr: string;
}

export const commandEnv = (extra: Record<string, string> = {}): NodeJS.ProcessEnv => ({
  ...process.env,
  PATH,
  // Messages and sort orders are parsed.
  LC_ALL: 'C',
  ...extra,
});

export const toolMissing = (tool: string): ForkdError =>
  new ForkdError('IMAGE_TOOL_MISSING', { tool, package: PACKAGE_OF[tool] ?? tool });

/** Runs to the end, whatever the exit status. */
export const command = (tool: string, args: string[], options: CommandOptions = {}): Promise<CommandResult> =>
  new Promise((resolve, reject) => {
    const child = spawn(tool, args, {
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      ...(options.signal === undefined ? {} : { signal: options.signal }),
      env: commandEnv(options.env),
      stdio: ['pipe', 'pipe', 'pipe'],
      // A process group of its own: compileall has workers, which an abort must end with it.
      detached: true,
    });
    const killGroup = () => {
      try {
        if (child.pid) process.kill(-child.pid, 'SIGKILL');
      } catch {
        // The group has ended.
      }
    };
    options.signal?.addEventListener('abort', killGroup);
    child.on('close', () => options.signal?.removeEventListener('abort', killGroup));
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
    child.on('error', (error: NodeJS.ErrnoException) => reject(error.code === 'ENOENT' ? toolMissing(tool) : error));
    child.on('close', (status) => {
      resolve({ status: status ?? 1, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() });
    });
    // A tool that ends without reading its input is judged by its status, not by our EPIPE.
    child.stdin.on('error', () => undefined);
    child.stdin.end(options.input);
  });

/** Runs and throws IMAGE_BUILD_FAILED on a failure. */
export const mustRun = async (tool: string, args: string[], options: CommandOptions = {}): Promise<Buffer> => {
  const { status, stdout, stderr } = await command(tool, args, options);
  if (status !== 0) throw new ForkdError('IMAGE_BUILD_FAILED', { reason: `${tool}: ${lastLines(stderr)}` });
  return stdout;
};

export const lastLines = (text: string, count = 3): string => text.trim().split('\n').slice(-count).join('; ');
