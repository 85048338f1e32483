import { formatBytes } from '../../contract/units.js';
import { snapshotsDir } from '../../main/paths.js';
import { detail } from '../../main/store/listing.js';
import { Store } from '../../main/store/store.js';
import { daemonOptions, daemonOrDisk } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { printFacts, printJson } from '../render.js';

export const snapshotInfo: Command = {
  name: 'snapshot-info',
  args: '[tag]',
  description: 'Show a snapshot: its sizes, its ancestors, and what is made of it',
  options: [['--json', 'Print one JSON object'], ...daemonOptions],
  examples: ['forkd snapshot-info base', 'forkd snapshot-info child --json | jq .ancestors'],
  run: async (options) => {
    const name = options.one('TAG');
    const { value: info } = await daemonOrDisk(
      options,
      (controller) => controller.snapshotInfo(name),
      () => detail(new Store(snapshotsDir()), name),
      30_000,
    );
    if (options.flag('json')) {
      printJson(info);
      return 0;
    }
    const { tag, ancestors, dependents } = info;
    printFacts([
      ['tag', tag],
      ['dir', info.dir],
      ['chain depth', String(info.chain_depth)],
      ['parent_tag', info.parent_tag ?? '(none: a base)'],
      ['parent_content_hash', info.parent_content_hash],
      ['branched_from', info.branched_from],
      ['memory', `${formatBytes(info.memory_logical_bytes)}, ${formatBytes(info.memory_physical_bytes)} on disk`],
      ['shared', ancestors.length > 0 ? `${formatBytes(info.shared_bytes)} on disk, with its ancestors` : undefined],
      ['working set', info.working_set_bytes === null ? '(not recorded)' : formatBytes(info.working_set_bytes)],
      ['memory_root', info.memory_root],
      ['vmstate', formatBytes(info.vmstate_bytes)],
      ['ancestors', ancestors.length > 0 ? [...ancestors, tag].join(' -> ') : undefined],
      ['dependents', dependents.length > 0 ? dependents.join(', ') : '(none)'],
    ]);
    return 0;
  },
};
