import { isSandboxId, parseTag } from '../../contract/names.js';
import type { PromoteReport } from '../../contract/branches.js';
import { snapshotsDir } from '../../main/paths.js';
import { promote as promoteTag } from '../../main/store/promote.js';
import { Store } from '../../main/store/store.js';
import { daemonOptions, daemonOrDisk } from '../ask-daemon.js';
import type { Command } from '../command.js';
import { deskOrDaemon } from '../desk-or-daemon.js';
import { detail } from '../progress.js';
import { printFacts, printJson } from '../render.js';

/** Writing the memory of a guest to a slow disk. */
const TIMEOUT_MS = 600_000;

export const promote: Command = {
  name: 'promote',
  args: '[branch]',
  usage: 'promote SANDBOX|TAG --as TAG',
  description: 'Make a tag mean another branch: a snapshot, or a sandbox as it is now, which runs on',
  options: [
    ['--as <TAG>', 'The tag; what it meant before stays, as TAG-1 or the next that is free'],
    ['--json', 'Print one JSON object'],
    ...daemonOptions,
  ],
  examples: [
    'forkd promote attempt-3 --as base',
    'forkd promote sb-6743b1c2-9f31c2aa --as base   # it runs on',
    'forkd prune base-1                             # and the other attempts go',
  ],
  run: async (options) => {
    const from = options.one('SANDBOX|TAG');
    const as = options.required('as');
    if (from === as) throw options.wrong('--as', 'must be another tag');
    const made = isSandboxId(from)
      ? await deskOrDaemon(
          options,
          { what: 'promote', id: from, as: parseTag(as) },
          (controller) => controller.promoteSandbox(from, as),
          TIMEOUT_MS,
        )
      : (
          await daemonOrDisk(
            options,
            (c) => c.promoteSnapshot(from, as),
            () => promoteHere(from, as),
            TIMEOUT_MS,
          )
        ).value;
    if (options.flag('json')) {
      printJson(made);
      return 0;
    }
    const { tag, dir, promoted_from, previous } = made;
    printFacts([
      ['tag', tag],
      ['dir', dir],
      ['promoted_from', promoted_from],
      ['previous', previous],
    ]);
    if (previous !== undefined) detail(`back again: forkd promote ${previous} --as ${tag}`);
    return 0;
  },
};

const promoteHere = async (from: string, as: string): Promise<PromoteReport> => {
  const { dir, previous } = await promoteTag(new Store(snapshotsDir()), { from, as });
  return { tag: as, dir, promoted_from: from, ...(previous === undefined ? {} : { previous }) };
};
