import { askDaemon, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { limitOptions, readLimits } from '../limit-options.js';
import { networkOf, networkOptions } from '../network-options.js';
import { printJson, printLine } from '../render.js';

/** The reference's: many children take longer than other requests. */
const TIMEOUT_MS = 120_000;

export const spawn: Command = {
  name: 'spawn',
  description: 'Have the daemon make sandboxes of a snapshot; they live until `forkd kill`',
  options: [
    ['--tag <TAG>', 'The snapshot'],
    ['-n <N>', 'How many (default 1); all are made, or none'],
    ['--per-child-netns', 'Each in its own namespace forkd-child-K'],
    ...networkOptions,
    ...limitOptions,
    ['--prewarm', 'Accepted for compatibility: every child is forked from a warmed template'],
    ['--strict', 'Refuse where a part of the jail or of the limits cannot be enforced (`forkd doctor`)'],
    ['--live-fork', 'Accepted for compatibility: every child can be branched while it runs'],
    ['--hugepages', 'With --live-fork: memory in 2 MiB pages'],
    ['--json', 'Print the array of sandboxes'],
    ...daemonOptions,
  ],
  examples: ['forkd spawn --tag base -n 5', 'forkd spawn --tag base --json | jq -r ".[0].id"'],
  run: async (options) => {
    const snapshotTag = options.required('tag');
    const n = options.count('n', 'n') ?? 1;
    if (n < 1) throw options.wrong('-n', 'must be at least 1');
    const [liveFork, hugepages] = [options.flag('live-fork'), options.flag('hugepages')];
    if (hugepages && !liveFork) throw options.wrong('--hugepages', 'needs --live-fork');
    const { memoryMib, ...otherLimits } = readLimits(options);
    const request = {
      snapshotTag,
      n,
      perChildNetns: options.flag('per-child-netns'),
      ...networkOf(options),
      prewarm: options.flag('prewarm'),
      liveFork,
      strict: options.flag('strict'),
      hugepages,
      ...(memoryMib === undefined ? {} : { memoryLimitMib: memoryMib }),
      ...otherLimits,
    };
    const sandboxes = await askDaemon(options, (controller) => controller.spawnSandboxes(request), TIMEOUT_MS);
    if (options.flag('json')) printJson(sandboxes);
    else for (const one of sandboxes) printLine(`${one.id}  guest=${one.guest_addr}  netns=${one.netns ?? '—'}`);
    return 0;
  },
};
