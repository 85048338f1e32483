import { askDaemon, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { line } from '../progress.js';
import { printJson, printLine, printTable } from '../render.js';

export const ls: Command = {
  name: 'ls',
  description: 'List the sandboxes of the daemon',
  options: [['--json', 'Print one JSON array'], ...daemonOptions],
  examples: ['forkd ls', 'forkd ls --json | jq -r ".[].id"'],
  run: async (options) => {
    const sandboxes = await askDaemon(options, (controller) => controller.listSandboxes(), 10_000);
    if (options.flag('json')) {
      printJson(sandboxes);
      return 0;
    }
    if (sandboxes.length === 0) {
      line('no live sandboxes');
      return 0;
    }
    printTable(
      ['ID', 'SNAPSHOT', 'STATUS', 'PID', 'NETNS', 'BRANCHES', 'GUEST_ADDR'],
      sandboxes.map((s) => [
        s.id,
        s.snapshot_tag,
        s.status,
        String(s.pid ?? '—'),
        s.netns ?? '—',
        String(s.branch_count),
        s.guest_addr,
      ]),
    );
    printLine(`${sandboxes.length} sandboxes`);
    return 0;
  },
};
