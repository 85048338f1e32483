import type { Controller } from '../../client/index.js';
import { isSandboxId } from '../../contract/names.js';
import type { LimitReport, LimitsChange } from '../../contract/resources.js';
import { daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { deskOrDaemon } from '../desk-or-daemon.js';
import { limitOptions, readLimits } from '../limit-options.js';
import { printJson, printLine } from '../render.js';

const TIMEOUT_MS = 30_000;

export const limit: Command = {
  name: 'limit',
  args: '<id>',
  usage: 'limit <ID> [options]',
  description:
    'Change what a sandbox may use, of the daemon or of a `forkd fork --settle-secs`, while it runs; without options, show it and what it has used',
  options: [
    ...limitOptions.map(([flag, text]): [string, string] => [flag, `${text.replace(' of each', '')}; "none" lifts it`]),
    ['--json', 'Print one JSON object'],
    ...daemonOptions,
  ],
  examples: [
    'forkd limit sb-6743b1c2-9f31c2aa --cpus 0.5   # of the daemon, or of a `forkd fork` that runs',
    'forkd limit sb-6743b1c2-9f31c2aa --cpus none',
  ],
  run: async (options) => {
    const id = options.one('ID');
    if (!isSandboxId(id)) throw options.wrong('ID', `'${id}' is not the id of a sandbox`);
    const change = readLimits(options, { none: null });
    const { limits, usage } = await deskOrDaemon(
      options,
      { what: 'limit', id, change },
      (controller) => limitByDaemon(controller, id, change),
      TIMEOUT_MS,
    );
    if (options.flag('json')) {
      printJson({ id, limits, usage });
      return 0;
    }
    for (const [name, value] of Object.entries(limits)) printLine(`${`${name}:`.padEnd(24)}${value ?? 'none'}`);
    for (const [name, value] of Object.entries(usage))
      printLine(`${`${name}:`.padEnd(24)}${value ?? 'not counted here'}`);
    return 0;
  },
};

const limitByDaemon = async (
  controller: Controller,
  id: string,
  { memoryMib, ...others }: LimitsChange,
): Promise<LimitReport> => {
  const change = { ...others, ...(memoryMib === undefined ? {} : { memoryLimitMib: memoryMib }) };
  const isAsked = Object.keys(change).length > 0;
  const { limits } = isAsked ? await controller.limitSandbox(id, change) : await controller.getSandbox(id);
  return { limits, usage: await controller.sandboxUsage(id) };
};
