/**
 * Which mechanism can this host use? KVM counts only after a real boot through it: a host may have a /dev/kvm that runs no
 * ordinary kernel (nested paravirtual KVM does exactly that, and the guest simply hangs).
 */
import { accessSync, constants } from 'node:fs';
import { release } from 'node:os';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import type { Isolation } from '../../contract/snapshot.js';
import { recall, remember } from '../host/known.js';
import type { VmmDriver } from './driver.js';

export interface KvmVerdict {
  usable: boolean;
  reason: string;
}

export const NOT_ASKED: KvmVerdict = { usable: false, reason: 'it was not asked for' };

const KVM = '/dev/kvm';

/** A guest under KVM is up in about two seconds; one that is not after this many never will be. */
export const PROBE_SECS = 15;

/** What can be said without a boot: no device, or no right to it. Undefined when only a boot can tell. */
export const kvmAtFirstSight = (): KvmVerdict | undefined => {
  try {
    accessSync(KVM, constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT';
    return { usable: false, reason: missing ? `there is no ${KVM}` : `${KVM} cannot be opened by this user` };
  }
};

const question = (driver: VmmDriver): string => `kvm boots a guest (kernel ${release()}, QEMU ${driver.version})`;

/** The remembered verdict of a real boot on this host, kernel and QEMU, or undefined. */
export const recallKvm = (hostFile: string, driver: VmmDriver): KvmVerdict | undefined =>
  kvmAtFirstSight() ?? recall<KvmVerdict>(hostFile, question(driver));

/** Asks by `boot`, which boots a guest through KVM and rejects when that fails, and remembers the answer. */
export const probeKvm = async (hostFile: string, driver: VmmDriver, boot: () => Promise<void>): Promise<KvmVerdict> => {
  const known = recallKvm(hostFile, driver);
  if (known) return known;
  const verdict = await boot().then(
    () => ({ usable: true, reason: 'a guest booted through it' }),
    (error: unknown) => {
      if (error instanceof ForkdError && error.code === 'CANCELLED') throw error;
      return { usable: false, reason: `a guest did not boot through it (${firstLine(reasonOf(error))})` };
    },
  );
  remember(hostFile, question(driver), verdict);
  return verdict;
};

/** The error on one line, with QEMU's own last words. */
const firstLine = (text: string): string => {
  const [first = text, ...console] = text.split('\n');
  return [first.replace(/; its last lines:$/, ''), ...console.slice(-1)].map((line) => line.trim()).join(': ');
};

/** KVM where it works, else emulation. Throws KVM_REQUIRED. */
export const chooseIsolation = (kvm: KvmVerdict, wanted: Isolation | undefined): Isolation => {
  if (wanted === 'kvm' && !kvm.usable) throw new ForkdError('KVM_REQUIRED', { reason: kvm.reason });
  return wanted ?? (kvm.usable ? 'kvm' : 'tcg');
};
