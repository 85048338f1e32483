/** `forkd doctor`: does this host have what this engine needs? docs/reference/doctor.md lists the checks. */
import { findQemu } from '../../vmm/find.js';
import { type Check, type CheckResult, type Host, runCheck, type Status } from './check.js';
import * as files from './files.js';
import { jailChecks } from './jail.js';
import * as machine from './machine.js';
import * as network from './network.js';
import * as vmm from './vmm.js';

export type { CheckResult, Finding, Status } from './check.js';
export { applyFix, describeFix, type Fix, planFixes } from './fix.js';

/** In the order in which they are shown. */
const CHECKS: Check[] = [
  machine.platform,
  machine.hardwareVirtualisation,
  vmm.kvm,
  vmm.qemu,
  vmm.qemuVersion,
  vmm.qemuMachine,
  vmm.isolation,
  files.imageTools,
  files.guestImage,
  files.kernelImage,
  files.imageCache,
  files.dataDirectory,
  files.snapshotDir,
  files.snapshotSpace,
  files.tempDirectory,
  machine.memory,
  machine.descriptors,
  ...jailChecks,
  machine.memfd,
  machine.pidfd,
  machine.userfaultfd,
  machine.writeProtect,
  machine.hugePages,
  machine.ksm,
  machine.damon,
  network.ipForward,
  network.networks,
  network.tap,
  network.netns,
  network.daemon,
  vmm.docker,
  vmm.firecracker,
  vmm.firecrackerVersion,
  files.leftovers,
];

/** What must hold before quickstart does anything. */
const FORK_CHECKS = [
  machine.platform,
  vmm.qemu,
  vmm.qemuVersion,
  vmm.qemuMachine,
  files.dataDirectory,
  files.tempDirectory,
  machine.memory,
  machine.descriptors,
];
const SNAPSHOT_CHECKS = [files.imageTools, files.imageCache, files.snapshotSpace];

export interface DoctorOptions {
  daemonUrl?: string;
  daemonToken?: string;
  /** PEM, for `https:`. */
  daemonCa?: string;
}

export const DEFAULT_DAEMON_URL = 'http://127.0.0.1:8889';

const examine = (
  checks: Check[],
  { daemonUrl = DEFAULT_DAEMON_URL, daemonToken, daemonCa }: DoctorOptions,
): Promise<CheckResult[]> => {
  const qemu = findQemu().catch((error: unknown) => (error instanceof Error ? error : new Error(String(error))));
  const host: Host = { qemu, daemonUrl: daemonUrl.replace(/\/+$/, ''), daemonToken, daemonCa };
  return Promise.all(checks.map((check) => runCheck(check, host)));
};

export const examineHost = (options: DoctorOptions = {}): Promise<CheckResult[]> => examine(CHECKS, options);

/** The checks that gate a fork, and a snapshot when there is one to be made. */
export const preflight = (makesSnapshot: boolean): Promise<CheckResult[]> =>
  examine(makesSnapshot ? [...FORK_CHECKS, ...SNAPSHOT_CHECKS] : FORK_CHECKS, {});

export type Counts = Record<Status, number>;

export const countStatuses = (results: CheckResult[]): Counts => {
  const counts: Counts = { pass: 0, warn: 0, fail: 0, skip: 0 };
  for (const { status } of results) counts[status]++;
  return counts;
};
