import { ForkdError, reasonOf } from '../../contract/errors.js';
import { snapshotsDir } from '../../main/paths.js';
import { Store } from '../../main/store/store.js';
import type { Command } from '../command.js';
import { line } from '../progress.js';
import { printJson, printLine } from '../render.js';

export const rmi: Command = {
  name: 'rmi',
  args: '[...tags]',
  description: 'Remove snapshots',
  options: [['--json', 'Print one JSON object for each tag']],
  examples: ['forkd rmi old-base', 'forkd rmi a b c'],
  run: (options) => {
    if (options.positional.length === 0) throw options.wrong('TAGS', 'give at least one tag');
    const store = new Store(snapshotsDir());
    let failed = 0;
    for (const tag of options.positional) {
      const error = attempt(() => store.remove(tag));
      if (error) failed++;
      if (options.flag('json'))
        printJson({ tag, removed: !error, source: 'disk', ...(error ? { error: error.toData() } : {}) });
      else printLine(error ? `✗ ${tag}  (${reasonOf(error)})` : `✓ ${tag}  (disk)`);
    }
    if (failed > 0) line(`Error: ${failed} of ${options.positional.length} tags could not be removed`);
    return failed > 0 ? 1 : 0;
  },
};

const attempt = (action: () => void): ForkdError | undefined => {
  try {
    action();
    return undefined;
  } catch (error) {
    return ForkdError.from(error);
  }
};
