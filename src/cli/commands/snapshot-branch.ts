/** `snapshot --from-sandbox`: the daemon makes a snapshot of a sandbox that runs on. */
import { parseTag } from '../../contract/names.js';
import { askDaemon } from '../ask-daemon.js';
import type { Options } from '../options.js';
import { warn } from '../progress.js';
import { printFacts, printJson } from '../render.js';

/** Writing a large memory to a slow disk. */
const TIMEOUT_MS = 600_000;

export const branchSandbox = async (id: string, options: Options): Promise<number> => {
  const [diff, live] = [options.flag('diff'), options.flag('live')];
  // cac turns `--no-wait` into an option `wait` that is false.
  const wait = options.parsed['wait'] !== false;
  if (diff && live) throw options.wrong('--diff', 'does not go with --live');
  if (!wait && !live) throw options.wrong('--no-wait', 'needs --live');
  const named = options.string('tag');
  const request = {
    ...(named === undefined ? {} : { tag: parseTag(named) }),
    ...(live ? { mode: 'live' as const } : {}),
    diff,
    wait,
  };
  const made = await askDaemon(options, (controller) => controller.branchSandbox(id, request), TIMEOUT_MS);
  if (made.warning !== undefined) warn(made.warning);
  if (options.flag('json')) printJson(made);
  else
    printFacts([
      ['tag', made.tag],
      ['dir', made.dir],
      ['branched_from', made.branched_from],
      ['status', made.status],
    ]);
  return 0;
};
