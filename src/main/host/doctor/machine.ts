/** Checks of the machine and its kernel. */
import { closeSync, readdirSync } from 'node:fs';
import { release } from 'node:os';
import { formatBytes, MiB } from '../../../contract/units.js';
import { native } from '../../../native/binding.js';
import { CHILD_DESCRIPTORS, NETWORK_DESCRIPTORS_MAX, SPARE_DESCRIPTORS } from '../../planner/admission.js';
import { hostResources, meminfo } from '../resources.js';
import { type Check, fail, pass, readText, skip, warn } from './check.js';

export const platform: Check = {
  name: 'platform',
  run: () => {
    if (process.platform !== 'linux') return fail(`${process.platform}: forkd needs Linux`);
    if (process.arch !== 'x64') return fail(`Linux on ${process.arch}: forkd needs x86_64`);
    const version = readText('/proc/version');
    if (version === undefined) return warn('/proc/version cannot be read');
    return pass(`${version.split(' ').slice(0, 3).join(' ')}, Node ${process.versions.node}`);
  },
};

export const hardwareVirtualisation: Check = {
  name: 'hw virt',
  run: () => {
    const flags = /^flags\s*:(.*)$/m.exec(readText('/proc/cpuinfo') ?? '')?.[1]?.split(' ') ?? [];
    if (flags.includes('vmx')) return pass('Intel VT-x (vmx)');
    if (flags.includes('svm')) return pass('AMD-V (svm)');
    return skip('none; emulation needs none', {
      hint: 'For KVM: switch on VT-x or AMD-V in the BIOS, or nested virtualisation in the cloud.',
    });
  },
};

/** A snapshot's default RAM and its QEMU, and ten children, by the figures of planner/admission.ts. */
const MEMORY_GOOD = 1024 * MiB;
const MEMORY_LEAST = 640 * MiB;

export const memory: Check = {
  name: 'memory',
  run: () => {
    const { memoryAvailable } = hostResources();
    const detail = `${formatBytes(memoryAvailable)} available of ${formatBytes(meminfo('MemTotal'))}`;
    if (memoryAvailable >= MEMORY_GOOD) return pass(detail);
    const hint = 'Free some memory, or make smaller snapshots (--mem-size-mib).';
    return memoryAvailable >= MEMORY_LEAST ? warn(detail, { hint }) : fail(detail, { hint });
  },
};

export const descriptors: Check = {
  name: 'descriptors',
  run: () => {
    const { descriptorsLeft } = hostResources();
    const enough = (each: number) => Math.max(0, Math.floor((descriptorsLeft - SPARE_DESCRIPTORS) / each));
    const children = enough(CHILD_DESCRIPTORS);
    const withNetworks = enough(CHILD_DESCRIPTORS + NETWORK_DESCRIPTORS_MAX);
    // Node has already raised the soft limit to the hard one.
    const detail =
      descriptorsLeft > 10_000_000
        ? 'unlimited'
        : `${descriptorsLeft} left: enough for ${children} children at once, ${withNetworks} with networks`;
    if (children >= 100) return pass(detail);
    const hint = 'Raise the hard limit: `ulimit -Hn 65536` as root, or LimitNOFILE= in the unit.';
    return children >= 1 ? warn(detail, { hint }) : fail(detail, { hint });
  },
};

/** CAP_SYS_PTRACE, capability(7). */
const CAP_SYS_PTRACE = 19n;

const hasCapability = (capability: bigint): boolean => {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readText('/proc/self/status') ?? '')?.[1] ?? '0';
  return ((BigInt(`0x${effective}`) >> capability) & 1n) === 1n;
};

export const userfaultfd: Check = {
  name: 'userfaultfd',
  run: () => {
    // This file is there exactly when the kernel has userfaultfd (fs/userfaultfd.c).
    const unprivileged = readText('/proc/sys/vm/unprivileged_userfaultfd');
    if (unprivileged === undefined)
      return warn('not in this kernel: memory is loaded before children start, not on demand');
    if (unprivileged === '1') return pass('for every user');
    if (hasCapability(CAP_SYS_PTRACE)) return pass('for this user (CAP_SYS_PTRACE)');
    return warn('only for user faults of this user: memory is loaded before children start', {
      hint: 'sysctl -w vm.unprivileged_userfaultfd=1, or run as root.',
    });
  },
};

/** Write protection came with Linux 5.7, for memfd memory with 5.19. */
const WP_ANONYMOUS = [5, 7] as const;
const WP_MEMFD = [5, 19] as const;

export const writeProtect: Check = {
  name: 'uffd_wp',
  run: () => {
    if (readText('/proc/sys/vm/unprivileged_userfaultfd') === undefined) return skip('this kernel has no userfaultfd');
    if (!kernelHas(WP_ANONYMOUS)) return skip(`Linux ${release()} has none (5.7 has); nothing here depends on it`);
    return pass(kernelHas(WP_MEMFD) ? 'anonymous and memfd memory' : 'anonymous memory only (memfd: Linux 5.19)');
  },
};

const kernelHas = ([major, minor]: readonly [number, number]): boolean => {
  const [x = 0, y = 0] = release().split('.').map(Number);
  return x > major || (x === major && y >= minor);
};

export const memfd: Check = {
  name: 'memfd_create',
  run: () => {
    closeSync(native.memfdCreate('forkd-doctor'));
    return pass('works; guest memory lives in memfds');
  },
};

export const pidfd: Check = {
  name: 'pidfd',
  run: () => {
    closeSync(native.pidfdOpen(process.pid));
    return pass('works; VMs are watched and ended by it');
  },
};

export const ksm: Check = {
  name: 'ksm',
  run: () => {
    const run = readText('/sys/kernel/mm/ksm/run');
    if (run === '1') return pass(`on, ${readText('/sys/kernel/mm/ksm/pages_to_scan') ?? '?'} pages a scan`);
    return skip(
      `${run === undefined ? 'not in this kernel' : 'off'}; not needed: children share the memory image itself`,
    );
  },
};

export const hugePages: Check = {
  name: 'hugepages',
  run: () => {
    const text = readText('/proc/meminfo') ?? '';
    const count = (name: string) => Number(new RegExp(`^HugePages_${name}:\\s+(\\d+)`, 'm').exec(text)?.[1] ?? 0);
    const [total, free] = [count('Total'), count('Free')];
    if (free > 0) return pass(`${free} of ${total} free`);
    return skip(`${total === 0 ? 'none set aside' : 'none free'}; only --hugepages wants them`, {
      hint: 'For --hugepages: sysctl -w vm.nr_hugepages=512 (2 MiB each).',
    });
  },
};

const KDAMONDS = '/sys/kernel/mm/damon/admin/kdamonds';

/** What it costs was measured: docs/internals/fork.md, "On a host whose page faults are slow". */
export const damon: Check = {
  name: 'damon',
  run: () => {
    const active = kdamonds().filter((name) => readText(`${KDAMONDS}/${name}/state`) === 'on');
    if (active.length === 0) return pass('nobody samples memory accesses');
    const detail = `kdamond ${active.join(', ')} samples memory accesses: inside a virtual machine, children can wake two to three times slower`;
    return warn(detail, { hint: `If you can do without it: echo off > ${KDAMONDS}/${active[0]}/state` });
  },
};

const kdamonds = (): string[] => {
  try {
    return readdirSync(KDAMONDS).filter((name) => /^\d+$/.test(name));
  } catch {
    return [];
  }
};
