import { ForkdError, reasonOf } from '../../contract/errors.js';
import { snapshotsDir } from '../../main/paths.js';
import { Store } from '../../main/store/store.js';
import { askDaemon, daemonOptions, daemonOrDisk, nearDaemonUrl, notThere } from '../ask-daemon.js';
import type { Command } from '../command.js';
import type { Options } from '../options.js';
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
    ...daemonOptions,
  ],
  examples: ['forkd rmi old-base', 'forkd rmi a b c', 'forkd rmi --cascade base'],
  run: async (options) => {
    const { positional } = options;
    if (positional.length === 0) throw options.wrong('TAGS', 'give at least one tag');
    const [cascade, force] = [options.flag('cascade'), options.flag('force')];
    if (cascade && force) throw options.wrong('--cascade', 'does not go with --force');
    const store = new Store(snapshotsDir());
    const before = await knownToDaemon(options);
    const done = new Set<string>();
    let failed = 0;
    for (const tag of positional) {
      // It went with one that was named before it.
      if (done.has(tag)) continue;
      try {
        const { value, source } = await daemonOrDisk(
          options,
          async (controller) => {
            await controller.deleteSnapshot(tag, { cascade, force });
            return [tag];
          },
          () => store.remove(tag, { cascade, force }),
        );
        for (const removed of value) {
          done.add(removed);
          tell(options.flag('json'), removed, source);
        }
      } catch (error) {
        // The daemon removed it with one that was named before it.
        if (cascade && before.has(tag) && ForkdError.from(error).code === 'SNAPSHOT_NOT_FOUND') continue;
        failed++;
        tell(options.flag('json'), tag, 'disk', ForkdError.from(error));
      }
    }
    if (failed > 0) line(`Error: ${failed} of ${positional.length} tags could not be removed`);
    return failed > 0 ? 1 : 0;
  },
};

const knownToDaemon = async (options: Options): Promise<Set<string>> => {
  if (nearDaemonUrl(options) === undefined) return new Set();
  try {
    return new Set((await askDaemon(options, (controller) => controller.listSnapshots())).map(({ tag }) => tag));
  } catch (error) {
    if (notThere(error)) return new Set();
    throw error;
  }
};

const tell = (json: boolean, tag: string, source: 'daemon' | 'disk', error?: ForkdError): void => {
  if (json) printJson({ tag, removed: !error, source, ...(error ? { error: error.toData() } : {}) });
  else printLine(error ? `✗ ${tag}  (${reasonOf(error)})` : `✓ ${tag}  (${source})`);
};
