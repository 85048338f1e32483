import { isSandboxId } from '../../contract/names.js';
import { askDaemon, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { limitOptions, readLimits } from '../limit-options.js';
import { printJson, printLine } from '../render.js';

const TIMEOUT_MS = 30_000;

export const limit: Command = {
  name: 'limit',
  args: '<id>',
  usage: 'limit <ID> [options]',
  description:
    'Change what a sandbox of the daemon may use, while it runs; without options, show it and what it has used',
  options: [
    ...limitOptions.map(([flag, text]): [string, string] => [flag, `${text.replace(' of each', '')}; "none" lifts it`]),
    ['--json', 'Print one JSON object'],
    ...daemonOptions,
  ],
  examples: ['forkd limit sb-6743b1c2-9f31c2aa --cpus 0.5', 'forkd limit sb-6743b1c2-9f31c2aa --cpus none'],
  run: async (options) => {
    const id = options.one('ID');
    if (!isSandboxId(id)) throw options.wrong('ID', `'${id}' is not the id of a sandbox`);
    const { memoryMib, ...others } = readLimits(options, { none: null });
    const change = { ...others, ...(memoryMib === undefined ? {} : { memoryLimitMib: memoryMib }) };
    const asked = Object.keys(change).length > 0;
    const [sandbox, usage] = await askDaemon(
      options,
      async (controller) => {
        const now = asked ? await controller.limitSandbox(id, change) : await controller.getSandbox(id);
        return [now, await controller.sandboxUsage(id)] as const;
      },
      TIMEOUT_MS,
    );
    if (options.flag('json')) {
      printJson({ id, limits: sandbox.limits, usage });
      return 0;
    }
    for (const [name, value] of Object.entries(sandbox.limits)) printLine(`${`${name}:`.padEnd(24)}${value ?? 'none'}`);
    for (const [name, value] of Object.entries(usage))
      printLine(`${`${name}:`.padEnd(24)}${value ?? 'not counted here'}`);
    return 0;
  },
};
