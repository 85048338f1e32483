/**
 * One process at a time changes which tags there are. A turn is a check that concerns other tags (does a parent still exist, is
 * something made of this one?) and the rename that it allows, so that nothing can come between the two.
 */
import { closeSync, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { native } from '../../native/binding.js';
import { soon } from '../host/soon.js';

/** No tag starts with a dot, so this is no tag's lock. */
const FILE = '.turn.lock';

/** Throws SNAPSHOT_BUSY when another process does not end its turn. */
export const inTurn = <T>(root: string, tag: string, act: () => T): T => {
  const locks = join(root, '.locks');
  mkdirSync(locks, { recursive: true });
  const fd = openSync(join(locks, FILE), 'a+', 0o600);
  try {
    const isOurs = soon(limits.storeTurnMs, () => native.flockTry(fd, 'exclusive') || undefined);
    if (!isOurs) throw new ForkdError('SNAPSHOT_BUSY', { tag });
    return act();
  } finally {
    closeSync(fd);
  }
};
