/** A program in a VM that has a root disk for writing: what is in a disk is never run on the host. */
import { truncate } from 'node:fs/promises';
import { ForkdError } from '../../contract/errors.js';
import type { ExecReply } from '../../contract/guest.js';
import { type Isolation, SERIAL_PORTS } from '../../contract/snapshot.js';
import { command, lastLines, mustRun } from '../image/command.js';
import type { GuestImage } from '../image/types.js';
import { EMULATED_CPU } from '../make-snapshot.js';
import type { MakeJail } from '../host/jail.js';
import { type Parent, withParent } from '../parent.js';
import type { Pool } from '../pool.js';
import type { VmmDriver } from '../vmm/driver.js';
import { kernelArgs } from '../vmm/kernel-args.js';

/** For what it writes, in a disk that is otherwise full: holes on the host until something is written, and cut off afterwards. */
export const WRITING_ROOM = { bytes: 4 * 1024 * 1024 * 1024, inodes: 262_144 };

const RUN_SECS = 1800;
/** Package managers hold their index in memory. */
const MEMORY_MIB = 1024;
const BOOT_SECS = 120;

/** The address of QEMU's own network, by which the host is 10.0.2.2 and its resolver 10.0.2.3. */
const NETWORK = ['ip=10.0.2.15::10.0.2.2:255.255.255.0::eth0:off', 'forkd.dns=10.0.2.3'];

export interface DiskContext {
  pool: Pool;
  driver: VmmDriver;
  guest: Pick<GuestImage, 'kernel' | 'initrd'>;
  isolation: Isolation;
  tscKhz: number;
  /** Hands over what makes its jail, and again when the kernel has refused that one: nothing of the guest has run then. */
  inJail: <T>(work: (make: MakeJail | undefined) => Promise<T>) => Promise<T>;
  signal?: AbortSignal;
}

export interface DiskRun {
  env?: Record<string, string>;
  /** What it may reach of this host's loopback. */
  loopback?: string[];
}

/** Runs one program to its end, as root, with the network that QEMU gives, and lets it write to `disk`. */
export const runInDisk = async (
  disk: string,
  args: string[],
  context: DiskContext,
  { env = {}, loopback = [] }: DiskRun = {},
): Promise<ExecReply> => {
  const { pool, driver, guest, isolation, tscKhz, inJail, signal } = context;
  const spec = {
    kernel: guest.kernel,
    initrd: guest.initrd,
    rootfs: disk,
    kernelArgs: [...kernelArgs(isolation, tscKhz), 'forkd.root=rw', ...NETWORK],
    isolation,
    memoryMib: MEMORY_MIB,
    vcpus: 1,
    cpuModel: isolation === 'kvm' ? 'host' : EMULATED_CPU,
    serialPorts: SERIAL_PORTS,
    volumes: [],
    card: false,
    builds: { loopback },
  };
  const options = { pool, driver, name: 'extras', kind: 'parent' as const, waitMs: BOOT_SECS * 1000 };
  const more = signal ? { signal } : {};
  return inJail((make) =>
    withParent(spec, { ...options, ...more, ...(make ? { makeJail: make } : {}) }, (parent) =>
      exec(pool, parent, args, env),
    ),
  );
};

const exec = async (
  pool: Pool,
  { sandbox }: Parent,
  args: string[],
  env: Record<string, string>,
): Promise<ExecReply> => {
  let outcome: ExecReply | ForkdError = new ForkdError('INTERNAL', { reason: 'no reply' });
  const request = { action: 'exec' as const, args, timeout: RUN_SECS, env };
  const call = {
    index: 0,
    name: 'the builder',
    agentFd: sandbox.vmm.agentFd,
    request,
    timeoutMs: (RUN_SECS + 30) * 1000,
  };
  await pool.run('call', { calls: [call] }, (event) => {
    if (event.type === 'reply') outcome = event.reply as ExecReply;
    if (event.type === 'failed') outcome = ForkdError.fromData(event.error);
  });
  if (outcome instanceof ForkdError) throw outcome;
  return outcome;
};

/** Makes it as small as it can be. It was not unmounted, but all was written. */
export const shrink = async (disk: string, signal?: AbortSignal): Promise<void> => {
  const checked = await command('e2fsck', ['-fy', disk], { signal });
  // 1: it put something right, the mark of an unmount at least.
  if (checked.status === null || checked.status > 1)
    throw new ForkdError('IMAGE_BUILD_FAILED', { reason: `e2fsck: ${lastLines(checked.stderr)}` });
  await mustRun('resize2fs', ['-M', disk], { signal });
  const { stdout } = await mustRunText('dumpe2fs', ['-h', disk], signal);
  const [blocks, size] = ['Block count', 'Block size'].map((name) =>
    Number(new RegExp(`^${name}: +(\\d+)`, 'm').exec(stdout)?.[1]),
  );
  if (!blocks || !size) throw new ForkdError('IMAGE_BUILD_FAILED', { reason: 'dumpe2fs says something else' });
  await truncate(disk, blocks * size);
};

const mustRunText = async (tool: string, args: string[], signal?: AbortSignal) => ({
  stdout: String(await mustRun(tool, args, { signal })),
});
