import { ForkdError } from '../../contract/errors.js';
import { isSandboxId } from '../../contract/names.js';
import { askDaemon, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { line } from '../progress.js';
import { printLine } from '../render.js';

export const kill: Command = {
  name: 'kill',
  args: '[...ids]',
  description: 'End sandboxes of the daemon',
  options: [['--all', 'Every one'], ['--tag <TAG>', 'Those made of this snapshot'], ...daemonOptions],
  examples: ['forkd kill sb-6743b1c2-9f31c2aa', 'forkd kill --tag base', 'forkd kill --all'],
  run: async (options) => {
    const ids = await chosen(options);
    if (ids.length === 0) {
      line('no sandboxes match');
      return 0;
    }
    let failed = 0;
    for (const id of ids) {
      try {
        await askDaemon(options, (controller) => controller.killSandbox(id), 30_000);
        printLine(`✓ ${id}`);
      } catch (error) {
        failed++;
        printLine(`✗ ${id}  (${ForkdError.from(error).message})`);
      }
    }
    if (failed > 0) line(`Error: ${failed} of ${ids.length} sandboxes could not be ended`);
    return failed > 0 ? 1 : 0;
  },
};

const chosen = async (options: Options): Promise<string[]> => {
  const { positional } = options;
  const tag = options.string('tag');
  const all = options.flag('all');
  if (all && tag !== undefined) throw options.wrong('--all', 'does not go with --tag');
  if (!all && tag === undefined) {
    if (positional.length === 0) throw options.wrong('IDS', 'give at least one, or --all, or --tag');
    for (const id of positional) if (!isSandboxId(id)) throw options.wrong('IDS', `'${id}' is not the id of a sandbox`);
    return [...new Set(positional)];
  }
  if (positional.length > 0) throw options.wrong('IDS', 'do not go with --all or --tag');
  const sandboxes = await askDaemon(options, (controller) => controller.listSandboxes(), 30_000);
  return sandboxes.filter((one) => all || one.snapshot_tag === tag).map(({ id }) => id);
};
