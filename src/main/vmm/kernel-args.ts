import type { Isolation } from '../../contract/snapshot.js';

/**
 * The kernel command line of a parent. docs/internals/guest.md gives the reason of each word.
 */
const COMMON = [
  'console=ttyS0',
  'quiet',
  'reboot=t',
  'panic=-1',
  'random.trust_cpu=on',
  'tsc=reliable',
  'no_timer_check',
  'psi=0',
  'cgroup_disable=memory',
  'deferred_probe_timeout=0',
];

/**
 * Emulation runs no instruction speculatively, so the kernel's mitigations would guard against nothing. And it translates code for the address at which
 * it runs: programs at random addresses would be translated anew by each that starts (docs/decisions/0097). Under KVM both stay.
 */
const EMULATED = ['mitigations=off', 'norandmaps'];

/**
 * `tscKhz`: an emulated guest reads the host's time stamp counter and would measure its speed against an emulated timer;
 * on a busy host that fails, the counter is given up, and the boot hangs on a timer that this machine type does not route.
 */
export const kernelArgs = (isolation: Isolation, tscKhz: number): string[] => [
  ...COMMON,
  ...(isolation === 'tcg' ? EMULATED : []),
  `tsc_early_khz=${tscKhz}`,
];
