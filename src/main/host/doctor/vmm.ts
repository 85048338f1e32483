/** Checks of the virtual machine monitor and of how VMs will be held apart. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { promisify } from 'node:util';
import { hostFile } from '../../paths.js';
import { onPath, QEMU } from '../../vmm/find.js';
import { kvmAtFirstSight, PROBE_SECS, recallKvm } from '../../vmm/probe.js';
import { QEMU_PACKAGE } from '../packages.js';
import { type Check, fail, pass, skip, warn } from './check.js';

const run = promisify(execFile);
const COMMAND_MS = 5000;

export const kvm: Check = {
  name: 'kvm',
  run: () => {
    const verdict = kvmAtFirstSight();
    if (!verdict) return pass('/dev/kvm can be opened (whether it boots a guest: see isolation)');
    const hint = existsSync('/dev/kvm')
      ? 'For KVM: `sudo usermod -aG kvm $USER`, then log in again.'
      : 'For KVM: load kvm_intel or kvm_amd, or use a host with (nested) virtualisation.';
    return warn(`${verdict.reason}: VMs are emulated, which is slower and a weaker wall`, { hint });
  },
};

export const qemu: Check = {
  name: 'qemu',
  run: async (host) => {
    const file = onPath(QEMU);
    if (!file) {
      const hint = `apt-get install -y --no-install-recommends ${QEMU_PACKAGE}`;
      return fail(`${QEMU} is not on PATH`, { hint, fix: { kind: 'packages', packages: [QEMU_PACKAGE] } });
    }
    const driver = await host.qemu;
    return driver instanceof Error ? fail(driver.message) : pass(driver.file);
  },
};

/** The oldest that this engine has been tried with. */
const OLDEST = [7, 2] as const;

export const qemuVersion: Check = {
  name: 'qemu version',
  run: async (host) => {
    const driver = await host.qemu;
    if (driver instanceof Error) return skip('no QEMU to ask');
    const [major = 0, minor = 0] = driver.version.split('.').map(Number);
    const isSupported = major > OLDEST[0] || (major === OLDEST[0] && minor >= OLDEST[1]);
    if (isSupported) return pass(driver.version);
    return fail(`${driver.version}: ${OLDEST.join('.')} or newer is needed`, {
      hint: 'Use Debian 12, Ubuntu 23.04 or newer.',
    });
  },
};

export const qemuMachine: Check = {
  name: 'qemu machine',
  run: async (host) => {
    const driver = await host.qemu;
    if (driver instanceof Error) return skip('no QEMU to ask');
    const [type = ''] = driver.machine.split(',');
    const { stdout } = await run(driver.file, ['-machine', 'help'], { timeout: COMMAND_MS });
    if (new RegExp(`^${type}\\s`, 'm').test(stdout)) return pass(type);
    return fail(`this QEMU has no machine type '${type}'`, {
      hint: `Use the distribution's ${QEMU_PACKAGE}.`,
    });
  },
};

/** Which mechanism the next snapshot will use. Only a boot proves KVM, so doctor reports the verdict of the last one. */
export const isolation: Check = {
  name: 'isolation',
  run: async (host) => {
    const atFirstSight = kvmAtFirstSight();
    if (atFirstSight) return pass(`tcg (emulation): ${atFirstSight.reason}`);
    const fix = { kind: 'kvm' as const };
    const driver = await host.qemu;
    if (driver instanceof Error) return skip('not known before there is a QEMU', { fix });
    const verdict = recallKvm(hostFile(), driver);
    if (!verdict) {
      return skip(`not known yet: the first snapshot tries KVM (at most ${PROBE_SECS} s) and else uses emulation`, {
        hint: '`forkd doctor --fix` tries it now.',
        fix,
      });
    }
    return pass(verdict.usable ? `kvm: ${verdict.reason}` : `tcg (emulation): KVM is not usable, ${verdict.reason}`);
  },
};

/** The reference's VMM. This engine drives QEMU, so its absence means nothing. */
export const firecracker: Check = {
  name: 'firecracker',
  run: () => {
    const file = onPath('firecracker');
    return file ? pass(`${file} (not used: QEMU is the VMM)`) : skip('not needed: QEMU is the VMM');
  },
};

export const firecrackerVersion: Check = {
  name: 'firecracker version',
  run: async () => {
    const file = onPath('firecracker');
    if (!file) return skip('not installed');
    const { stdout } = await run(file, ['--version'], { timeout: COMMAND_MS }).catch(() => ({ stdout: '' }));
    const version = /\bv(\d+\.\d+\S*)/.exec(stdout)?.[1];
    return skip(`${version ?? 'unknown'} (not used)`);
  },
};

export const docker: Check = {
  name: 'docker',
  run: async () => {
    const file = onPath('docker');
    if (!file) return skip('not installed; the embedded guest image needs none');
    const { stdout } = await run(file, ['info', '--format', '{{.ServerVersion}}'], { timeout: COMMAND_MS }).catch(
      () => ({ stdout: '' }),
    );
    const version = stdout.trim();
    return version === '' ? skip('installed, but its daemon does not answer; not needed') : pass(version);
  },
};
