/** Does a snapshot fit this host? Checked before anything is started, since device state loaded wrongly fails in strange ways. */
import { statSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import type { FileDigest, SnapshotManifest } from '../../contract/snapshot.js';
import { fileDigest } from '../file-digest.js';
import { sameSpeed } from '../host/tsc.js';

export interface HostFit {
  vmmVersion: string;
  machine: string;
  tscKhz: number;
  /** Why KVM cannot be used here, or undefined when it can. */
  kvmProblem: string | undefined;
}

/** The first reason why it does not fit, or undefined. Pure. */
export const misfit = (manifest: SnapshotManifest, host: HostFit): string | undefined => {
  const { vmm, isolation } = manifest;
  if (release(vmm.version) !== release(host.vmmVersion)) {
    return `it was saved by QEMU ${vmm.version}, and QEMU ${host.vmmVersion} is installed here`;
  }
  if (vmm.machine !== host.machine) return `it needs the machine '${vmm.machine}', and this forkd makes another`;
  if (isolation === 'kvm' && host.kvmProblem !== undefined) return `it needs KVM, but ${host.kvmProblem}`;
  if (isolation === 'tcg' && !sameSpeed(manifest.tsc_khz, host.tscKhz)) {
    return `its clock runs at the speed of another processor (${manifest.tsc_khz} kHz, ${host.tscKhz} kHz here)`;
  }
  return undefined;
};

/** The microvm machine type has no versions of its own: its device state is kept only within a release (`7.2`). */
const release = (version: string): string => version.split('.').slice(0, 2).join('.');

/**
 * The guest has the disk's contents in its page cache, so the file must be the very one. Size and mtime settle it at once;
 * a file that was copied or touched is hashed. Throws SNAPSHOT_INCOMPATIBLE.
 */
export const requireFile = async (tag: string, what: string, path: string, digest: FileDigest): Promise<void> => {
  const refuse = (reason: string) => new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag, reason });
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) throw refuse(`its ${what} ${path} is missing`);
  if (stat.size === digest.bytes && stat.mtimeMs === digest.mtime_ms) return;
  if ((await fileDigest(path)).blake3 !== digest.blake3) throw refuse(`its ${what} ${path} has changed since`);
};
