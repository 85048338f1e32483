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
  options: [
    ['--cascade', 'Remove what is made of them too'],
    ['--force', 'Remove them even if something is made of them or uses them'],
    ['--json', 'Print one JSON object for each tag'],
  ],
  examples: ['forkd rmi old-base', 'forkd rmi a b c', 'forkd rmi --cascade base'],
  run: (options) => {
    const { positional } = options;
    if (positional.length === 0) throw options.wrong('TAGS', 'give at least one tag');
    const [cascade, force] = [options.flag('cascade'), options.flag('force')];
    if (cascade && force) throw options.wrong('--cascade', 'does not go with --force');
    const store = new Store(snapshotsDir());
    const done = new Set<string>();
    let failed = 0;
    for (const tag of positional) {
      // It went with one that was named before it.
      if (done.has(tag)) continue;
      try {
        for (const removed of store.remove(tag, { cascade, force })) {
          done.add(removed);
          tell(options.flag('json'), removed);
        }
      } catch (error) {
        failed++;
        tell(options.flag('json'), tag, ForkdError.from(error));
      }
    }
    if (failed > 0) line(`Error: ${failed} of ${positional.length} tags could not be removed`);
    return failed > 0 ? 1 : 0;
  },
};

const tell = (json: boolean, tag: string, error?: ForkdError): void => {
  if (json) printJson({ tag, removed: !error, source: 'disk', ...(error ? { error: error.toData() } : {}) });
  else printLine(error ? `✗ ${tag}  (${reasonOf(error)})` : `✓ ${tag}  (disk)`);
};
