import { resolve } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { formatBytes } from '../../contract/units.js';
import { findLeftovers, type Leftover, removalProblem, removeLeftover } from '../../main/host/cleanup.js';
import { snapshotsDir } from '../../main/paths.js';
import type { Command } from '../command.js';
import { printJson, printLine } from '../render.js';

interface Row extends Leftover {
  action: 'del' | 'skip' | 'fail';
  reason?: string;
}

export const cleanup: Command = {
  name: 'cleanup',
  description: 'Remove what killed runs left behind; without --yes only list it',
  options: [
    ['-y, --yes', 'Remove; nothing is removed without it'],
    [
      '--snapshot-root <DIR>',
      "Of snapshots, look at those there: a daemon's with that option (env FORKD_SNAPSHOT_ROOT)",
    ],
    ['--json', 'Print one JSON object'],
  ],
  examples: ['forkd cleanup', 'forkd cleanup --yes'],
  run: async (options) => {
    const isDry = !options.flag('yes');
    const json = options.flag('json');
    // Absolute: what is removed is told to others, and compared.
    const root = resolve(options.string('snapshot-root', { env: 'FORKD_SNAPSHOT_ROOT' }) ?? snapshotsDir());
    const { remove, skip } = findLeftovers(root);
    const rows: Row[] = [];
    const tell = (row: Row) => {
      rows.push(row);
      if (!json) printLine(asLine(row));
    };
    for (const one of skip) tell({ ...one, action: 'skip' });
    for (const one of remove) tell(isDry ? { ...one, action: 'del' } : await removed(one, root));
    const gone = rows.filter(({ action }) => action === 'del');
    const failed = rows.filter(({ action }) => action === 'fail').length;
    const bytes = gone.reduce((sum, row) => sum + row.bytes, 0);
    if (json) printJson({ dry_run: isDry, items: rows, count: gone.length, bytes });
    else printLine(summary(isDry, gone.length, bytes));
    return failed > 0 ? 1 : 0;
  },
};

/** What was taken into use between the listing and now is skipped, as it would have been a moment later. */
const removed = async (one: Leftover, snapshotRoot: string): Promise<Row> => {
  try {
    await removeLeftover(one, snapshotRoot);
    return { ...one, action: 'del' };
  } catch (error) {
    const isInUse = error instanceof ForkdError && error.code === 'CLEANUP_REFUSED';
    return { ...one, action: isInUse ? 'skip' : 'fail', reason: removalProblem(error) };
  }
};

const asLine = ({ action, kind, path, bytes, reason }: Row): string =>
  `${action.toUpperCase().padEnd(4)}  ${kind.padEnd(16)}  ${formatBytes(bytes).padStart(9)}  ${path}${reason ? `  (${reason})` : ''}`;

const summary = (isDry: boolean, count: number, bytes: number): string => {
  if (count === 0) return 'nothing to remove';
  const what = `${count} ${count === 1 ? 'leftover' : 'leftovers'}, ${formatBytes(bytes)}`;
  return isDry ? `dry run: nothing was removed; \`forkd cleanup --yes\` removes ${what}` : `removed ${what}`;
};
