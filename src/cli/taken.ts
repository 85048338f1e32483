/** What `unpack` and `pull` take out of a pack: a snapshot, or only its root disk. */
import { formatBytes } from '../contract/units.js';
import type { TakenDisk, Unpacked } from '../main/hub/unpack.js';
import type { Options } from './options.js';

/** --disk, which leaves nothing for --tag and --force to say. */
export const diskOf = (options: Options): string | undefined => {
  const disk = options.string('disk');
  if (disk === undefined) return undefined;
  if (options.string('tag') !== undefined)
    throw options.wrong('--tag', 'is of no use with --disk: no snapshot is made');
  if (options.flag('force')) throw options.wrong('--force', 'is of no use with --disk: no snapshot is made');
  return disk;
};

export const toldOf = (taken: TakenDisk | Unpacked): string =>
  'disk' in taken
    ? `root disk ${taken.disk} (${formatBytes(taken.disk_bytes)})`
    : `snapshot '${taken.tag}' in ${taken.dir}`;
