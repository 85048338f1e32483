/**
 * The initramfs: busybox, the init script, both agents, and the kernel modules if the kernel needs any. It carries the
 * agents so that any root file system becomes a guest, without being changed: in Python where there is one, else in C.
 */
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { agentPath, takePath } from '../../native/binding.js';
import { Apt } from './apt.js';
import { type CpioEntry, writeCpio } from './cpio.js';
import { unpackDeb } from './deb.js';
import { collectModules, type KernelModule } from './modules.js';
import { type GuestSource, readGuestSources } from './sources.js';

export interface InitrdOptions {
  /** File to write; replaced at once, never half-written. */
  out: string;
  /** /lib/modules/VERSION of the kernel; left out for a kernel that has virtio, overlay and the file system built in. */
  modulesDir?: string;
  /** A static busybox; downloaded from Debian when left out. */
  busybox?: string;
  /** Compiled agent modules (file name in __pycache__ to bytes): saves the guest the compilation if its Python fits. */
  bytecode?: Map<string, Buffer>;
  signal?: AbortSignal;
}

/** The applets that init calls. */
const APPLETS = [
  'chmod',
  'cp',
  'dd',
  'echo',
  'ifconfig',
  'insmod',
  'ln',
  'mkdir',
  'mount',
  'poweroff',
  'reboot',
  'rm',
  'route',
  'sh',
  'sleep',
  'switch_root',
  'umount',
  'usleep',
];

export const buildInitrd = async (options: InitrdOptions): Promise<void> => {
  const sources = readGuestSources();
  const modules = options.modulesDir === undefined ? [] : await collectModules(options.modulesDir);
  const busybox =
    options.busybox === undefined ? await downloadBusybox(options.signal) : await readFile(options.busybox);
  const programs = { busybox, agent: await readFile(agentPath), take: await readFile(takePath) };
  const archive = writeCpio(initrdEntries(programs, sources, modules, options.bytecode ?? new Map()));
  const half = `${options.out}.${process.pid}.part`;
  await writeFile(half, archive);
  await rename(half, options.out);
};

/** Not compressed: unpacking gzip under emulation costs more than reading the bytes. */
export const initrdEntries = (
  { busybox, agent, take }: Record<'busybox' | 'agent' | 'take', Buffer>,
  sources: GuestSource[],
  modules: KernelModule[],
  bytecode: Map<string, Buffer>,
): CpioEntry[] => [
  ...[
    'bin',
    'dev',
    'proc',
    'sys',
    'run',
    'lower',
    'overlay',
    'newroot',
    'volumes',
    'forkd_agent',
    'forkd_agent/__pycache__',
    'modules',
  ].map((path): CpioEntry => ({ path, kind: 'directory' })),
  // The kernel opens it for init's output before devtmpfs is mounted.
  { path: 'dev/console', kind: 'device', major: 5, minor: 1 },
  { path: 'bin/busybox', kind: 'file', data: busybox, mode: 0o755 },
  { path: 'forkd-agent', kind: 'file', data: agent, mode: 0o755 },
  ...APPLETS.map((name): CpioEntry => ({ path: `bin/${name}`, kind: 'link', target: 'busybox' })),
  ...sources.map(({ path, data }): CpioEntry => ({ path, kind: 'file', data, mode: path === 'init' ? 0o755 : 0o644 })),
  { path: 'forkd_agent/take.so', kind: 'file', data: take },
  ...[...bytecode].map(([name, data]): CpioEntry => ({ path: `forkd_agent/__pycache__/${name}`, kind: 'file', data })),
  ...modules.map(({ name, data }): CpioEntry => ({ path: `modules/${name}.ko`, kind: 'file', data })),
  {
    path: 'modules/list',
    kind: 'file',
    data: Buffer.from(modules.map(({ group, name }) => `${group} ${name}\n`).join('')),
  },
];

const downloadBusybox = async (signal?: AbortSignal): Promise<Buffer> => {
  const dir = await mkdtemp(join(tmpdir(), 'forkd-busybox-'));
  try {
    const apt = await Apt.open(join(dir, 'apt'), signal);
    const deb = await apt.withFreshLists(async () => {
      const wanted = (await apt.closure(['busybox-static'])).filter(({ name }) => name === 'busybox-static');
      return (await apt.download(wanted, join(dir, 'debs'))).get('busybox-static') ?? '';
    });
    await unpackDeb(deb, join(dir, 'tree'), () => true, signal);
    return await readFile(join(dir, 'tree/usr/bin/busybox'));
  } finally {
    await rm(dir, { recursive: true, force: true });
  }
};

export const kernelVersionOf = (modulesDir: string): string => modulesDir.slice(dirname(modulesDir).length + 1);
