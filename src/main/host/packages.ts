/** Debian packages on the host: what the engine needs, whether it is there, and its installation with apt-get. */
import { type ChildProcess, spawn } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import { commandEnv, lastLines, toolMissing } from '../image/command.js';
import { onPath } from '../vmm/find.js';

export const QEMU_PACKAGE = 'qemu-system-x86';

/** What the guest image builder runs on the host (src/main/image). */
const IMAGE_TOOLS = ['apt-get', 'dpkg-deb', 'mkfs.ext4', 'ldconfig', 'xz'];

/** Looked for where the builder looks: mkfs and ldconfig are not on an ordinary user's PATH. */
export const missingImageTools = (): { tool: string; package: string }[] =>
  IMAGE_TOOLS.filter((tool) => findTool(tool) === undefined).map((tool) => ({
    tool,
    package: String(toolMissing(tool).details['package']),
  }));

export const findTool = (tool: string): string | undefined => onPath(tool, commandEnv().PATH);

/** Only root may install, and only where there is an apt-get. */
export const canInstall = (): boolean => process.getuid?.() === 0 && findTool('apt-get') !== undefined;

export interface InstallOptions {
  signal?: AbortSignal;
  /** What apt-get is doing, and how far it is, 0 to 1. */
  onProgress?: (step: string, fraction: number) => void;
}

/**
 * Installs packages without their recommendations. Throws PACKAGES_MISSING when this user cannot, PACKAGES_FAILED, CANCELLED.
 * Lists that are absent or out of date are fetched.
 */
export const installPackages = async (packages: string[], options: InstallOptions = {}): Promise<void> => {
  if (!canInstall()) throw new ForkdError('PACKAGES_MISSING', { packages: packages.join(' ') });
  const install = () => aptGet(['install', '-y', '--no-install-recommends', ...packages], options);
  if (hasLists()) {
    const failure = await install();
    if (failure === undefined) return;
  }
  // A broken third-party source makes the whole update fail; what counts is whether the installation now succeeds.
  const updateFailure = await aptGet(['update'], options);
  const failure = await install();
  if (failure !== undefined)
    throw new ForkdError('PACKAGES_FAILED', { packages: packages.join(' '), reason: failure }, updateFailure);
};

const hasLists = (): boolean => {
  try {
    return readdirSync('/var/lib/apt/lists').some((name) => /_Packages(\.\w+)?$/.test(name));
  } catch {
    return false;
  }
};

/** How long dpkg may take to come to an end of its own after an interrupt: cut short, it leaves packages half installed. */
const INTERRUPT_GRACE_MS = 30_000;

const SETTINGS = [
  // Another apt may be at work, as on a machine that has just booted.
  'DPkg::Lock::Timeout=60',
  'Dpkg::Use-Pty=0',
  'Acquire::Retries=2',
  'Acquire::http::Timeout=30',
  'Acquire::https::Timeout=30',
  'APT::Status-Fd=3',
];

/** Runs apt-get to its end. Returns why it failed, or undefined. Throws CANCELLED. */
const aptGet = async (args: string[], { signal, onProgress }: InstallOptions): Promise<string | undefined> => {
  if (signal?.aborted) throw new ForkdError('CANCELLED');
  onProgress?.(`apt-get ${args[0]}`, 0);
  const child = spawn('apt-get', ['-q', ...SETTINGS.flatMap((setting) => ['-o', setting]), ...args], {
    env: { ...commandEnv(), DEBIAN_FRONTEND: 'noninteractive' },
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
    // A group of its own: a Ctrl-C in the terminal reaches us, and we decide how apt-get and all it runs are ended.
    detached: true,
  });
  const stopWatching = endWith(child, signal);
  const failure = await outcome(child, onProgress).finally(stopWatching);
  if (signal?.aborted) throw new ForkdError('CANCELLED');
  return failure;
};

const outcome = (child: ChildProcess, onProgress: InstallOptions['onProgress']): Promise<string | undefined> =>
  new Promise((resolve, reject) => {
    let errors = '';
    child.stderr?.on('data', (data: Buffer) => {
      errors = `${errors}${data}`.slice(-8192);
    });
    const status = child.stdio[3] as NodeJS.ReadableStream | null;
    status?.on('data', (data: Buffer) => {
      for (const row of data.toString().split('\n')) report(row, onProgress);
    });
    child.on('error', (error: NodeJS.ErrnoException) =>
      reject(error.code === 'ENOENT' ? toolMissing('apt-get') : error),
    );
    child.on('close', (code, name) =>
      resolve(code === 0 ? undefined : lastLines(errors) || `it ended with ${name ?? `exit code ${code}`}`),
    );
  });

/** `dlstatus:<item>:<percent>:<text>` while downloading, `pmstatus:<package>:<percent>:<text>` while dpkg works. */
const report = (row: string, onProgress: InstallOptions['onProgress']): void => {
  const [, kind, percent, text] = /^(dlstatus|pmstatus):[^:]*:([\d.]+):(.*)$/.exec(row) ?? [];
  if (kind === undefined) return;
  onProgress?.(kind === 'dlstatus' ? 'downloading packages' : (text ?? 'installing packages'), Number(percent) / 100);
};

/** Ends the child with us: politely when aborted, then harder, and at once when this process exits. Returns how to stop that. */
const endWith = (child: ChildProcess, signal: AbortSignal | undefined): (() => void) => {
  let timer: NodeJS.Timeout | undefined;
  const onAbort = () => {
    // While it downloads, apt-get ends on SIGINT; while dpkg works it ignores it, and dpkg is let finish.
    killGroup(child, 'SIGINT');
    timer = setTimeout(() => killGroup(child, 'SIGTERM'), INTERRUPT_GRACE_MS);
  };
  const onExit = () => killGroup(child, 'SIGTERM');
  // What apt-get had started and left alone goes too.
  child.once('exit', () => {
    if (signal?.aborted) killGroup(child, 'SIGTERM');
  });
  signal?.addEventListener('abort', onAbort);
  process.once('exit', onExit);
  return () => {
    clearTimeout(timer);
    signal?.removeEventListener('abort', onAbort);
    process.off('exit', onExit);
  };
};

const killGroup = (child: ChildProcess, name: NodeJS.Signals): void => {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, name);
  } catch {
    // Nobody of the group is left.
  }
};
