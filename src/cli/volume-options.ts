/** The option of the commands that boot a guest. Children have the volumes of the snapshot that they are forked from. */
import type { Volume } from '../contract/snapshot.js';
import { parseVolume } from '../main/make-snapshot.js';
import type { Options } from './options.js';

export const volumeOption: [flags: string, description: string] = [
  '--volume <HOST:GUEST[:ro|:rw]>',
  'Attach a disk image; repeatable; writes stay in each child',
];

/** Throws VOLUME_INVALID. */
export const volumesOf = (options: Options): Volume[] => options.strings('volume').map(parseVolume);
