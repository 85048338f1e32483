import type { PruneReport, PruneRequest } from '../../contract/branches.js';
import { ForkdError } from '../../contract/errors.js';
import { parseTag } from '../../contract/names.js';
import { formatAge, formatBytes, parseAge } from '../../contract/units.js';
import { planPrune, prune as pruneBranches } from '../../main/branches/prune.js';
import { snapshotsDir } from '../../main/paths.js';
import { Store } from '../../main/store/store.js';
import { daemonOptions, daemonOrDisk } from '../ask-daemon.js';
import { branchesHere } from '../branches-here.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
import { line } from '../progress.js';
import { printJson, printLine } from '../render.js';
import { confirm } from '../setup.js';

export const prune: Command = {
  name: 'prune',
  args: '[tag]',
  description: 'Remove branches that no sandbox, workspace or other snapshot needs; with TAG, only those below it',
  options: [
    ['--older-than <AGE>', 'Only those that are older: 90s, 15m, 12h, 7d, 2w'],
    ['--keep <N>', 'The N newest stay'],
    ['-a, --all', 'Bases, and tags that were promoted, too'],
    ['--dry-run', 'Only tell what would go'],
    ['-y, --yes', 'Do not ask'],
    ['--json', 'Print one JSON object'],
    ...daemonOptions,
  ],
  examples: ['forkd prune --dry-run', 'forkd prune base --keep 3', 'forkd prune --older-than 7d --yes'],
  run: async (options) => {
    const request = requestOf(options);
    const json = options.flag('json');
    const plan = await act(options, request, true);
    if (options.flag('dry-run') || plan.removed.length === 0) {
      if (json) printJson(plan);
      else tell(plan, options.flag('dry-run'));
      return 0;
    }
    if (!options.flag('yes')) {
      const now = Date.now() / 1000;
      for (const { tag, created_at_unix } of plan.removed) line(`    ${tag}  ${formatAge(now - created_at_unix)}`);
      const question = `Remove ${counted(plan.removed.length)}, ${formatBytes(plan.freed_bytes)}?`;
      if (!(await confirm(question, new AbortController().signal))) throw new ForkdError('NOT_CONFIRMED');
    }
    const seen = plan.removed.map(({ tag }) => tag);
    const done = await act(options, { ...request, only: seen }, false);
    if (json) printJson(done);
    else tell(done, false);
    return done.removed.length < seen.length ? 1 : 0;
  },
};

const requestOf = (options: Options): PruneRequest => {
  const { positional } = options;
  const age = options.string('older-than');
  const seconds = age === undefined ? undefined : parseAge(age);
  if (age !== undefined && seconds === undefined)
    throw options.wrong('--older-than', `'${age}' is not an age such as 7d`);
  const keep = options.count('keep');
  return {
    ...(positional.length === 0 ? {} : { under: parseTag(options.one('TAG')) }),
    all: options.flag('all'),
    ...(seconds === undefined ? {} : { older_than_secs: seconds }),
    ...(keep === undefined ? {} : { keep }),
  };
};

const act = async (options: Options, request: PruneRequest, dryRun: boolean): Promise<PruneReport> => {
  const { under, all, older_than_secs: olderThanSecs, keep, only } = request;
  const given = { under, all, olderThanSecs, keep, only, dryRun };
  const { value } = await daemonOrDisk(
    options,
    (controller) =>
      controller.pruneSnapshots(Object.fromEntries(Object.entries(given).filter(([, v]) => v !== undefined))),
    async () => {
      const store = new Store(snapshotsDir());
      const plan = planPrune(await branchesHere(options), request, Math.floor(Date.now() / 1000), (tag) =>
        store.userOf(tag),
      );
      return pruneBranches(plan, dryRun, (tag) => void store.remove(tag));
    },
  );
  return value;
};

const counted = (n: number): string => `${n} ${n === 1 ? 'snapshot' : 'snapshots'}`;

const tell = ({ removed, kept, freed_bytes }: PruneReport, isDry: boolean): void => {
  for (const { tag } of removed) printLine(`${isDry ? 'DEL   ' : '✓ '}${tag}`);
  for (const { tag, reason } of kept) if (isDry) printLine(`KEEP  ${tag}  (${reason})`);
  if (removed.length === 0) printLine('nothing to remove');
  else if (isDry) printLine(`dry run: ${counted(removed.length)}, ${formatBytes(freed_bytes)} would go`);
  else printLine(`removed ${counted(removed.length)}, ${formatBytes(freed_bytes)}`);
};
