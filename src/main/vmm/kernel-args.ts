/** The kernel command line of a parent. docs/internals/guest.md gives the reason of each. */
export const KERNEL_ARGS = [
  'console=ttyS0',
  'quiet',
  'reboot=t',
  'panic=-1',
  'random.trust_cpu=on',
  'tsc=reliable',
  'no_timer_check',
  'mitigations=off',
];
