import type { Controller, WorkspaceInfo } from '../../client/index.js';
import { askDaemon, daemonOptions } from '../ask-daemon.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { networkOf, networkOptions } from '../network-options.js';
import { printJson, printLine } from '../render.js';

/** A suspension writes the memory of a guest, and may have to compact a chain. */
const TIMEOUT_MS = 300_000;

type Act = (controller: Controller, name: string, options: Options) => Promise<WorkspaceInfo | undefined>;

const ACTIONS: Record<string, Act> = {
  create: (controller, name, options) => {
    const memoryLimitMib = options.count('memory-limit-mib');
    return controller.createWorkspace({
      name,
      snapshotTag: options.required('snapshot'),
      perChildNetns: options.flag('per-child-netns'),
      ...networkOf(options),
      ...(memoryLimitMib === undefined ? {} : { memoryLimitMib }),
    });
  },
  suspend: (controller, name, options) => controller.suspendWorkspace(name, { diff: options.flag('diff') }),
  resume: (controller, name) => controller.resumeWorkspace(name),
  delete: async (controller, name) => {
    await controller.deleteWorkspace(name);
    return undefined;
  },
};

export const workspace: Command = {
  name: 'workspace',
  args: '<action> [name]',
  usage: 'workspace create|suspend|resume|list|delete [name]',
  description: 'Sandboxes of the daemon that can be put to disk and taken back, under a name that survives it',
  options: [
    ['--snapshot <TAG>', 'create: the snapshot that it is made of'],
    ['--per-child-netns', 'create: in a namespace forkd-child-K of its own'],
    ...networkOptions.map(([flags, what]): [string, string] => [flags, `create: ${what}`]),
    ['--memory-limit-mib <N>', 'create: cap on its memory, MiB'],
    ['--diff', 'suspend: accepted for compatibility; only what changed is written in any case'],
    ['--json', 'Print one JSON object; list: one array'],
    ...daemonOptions,
  ],
  examples: [
    'forkd workspace create mine --snapshot base',
    'forkd exec --target $(forkd workspace list --json | jq -r ".[0].live_sandbox_id") -- uname -a',
    'forkd workspace create online --snapshot base-net --allow-domain pypi.org:443',
    'forkd workspace suspend mine        # its state goes to disk, its sandbox ends',
    'forkd workspace resume mine',
    'forkd workspace delete mine',
  ],
  run: async (options) => {
    const [action = '', ...names] = options.positional;
    if (action === 'list') return list(options, names);
    const act = Object.hasOwn(ACTIONS, action) ? ACTIONS[action] : undefined;
    if (!act) throw options.wrong('ACTION', `'${action}' is none of create, suspend, resume, list, delete`);
    const [name] = names;
    if (name === undefined || names.length > 1) throw options.wrong('NAME', 'is to be given once');
    const done = await askDaemon(options, (controller) => act(controller, name, options), TIMEOUT_MS);
    if (options.flag('json')) printJson(done ?? { name, deleted: true });
    else printLine(done ? rowOf(done) : `✓ ${name}`);
    return 0;
  },
};

const list = async (options: Options, names: string[]): Promise<number> => {
  if (names.length > 0) throw options.wrong('NAME', 'does not go with list');
  const found = await askDaemon(options, (controller) => controller.listWorkspaces(), 30_000);
  if (options.flag('json')) printJson(found);
  else if (found.length === 0) printLine('(no workspaces)');
  else for (const one of found) printLine(rowOf(one));
  return 0;
};

/** The reference's columns. */
const rowOf = ({ name, status, source_snapshot_tag, current_state_tag = '-', live_sandbox_id = '-' }: WorkspaceInfo) =>
  `${name.padEnd(24)} ${status.padEnd(10)} source=${source_snapshot_tag} state=${current_state_tag} live=${live_sandbox_id}`;
