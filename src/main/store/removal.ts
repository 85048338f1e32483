/** Removing tags: out of sight by a rename each, leaves first, then their files. Killed anywhere between, no tag is half there. */
import { closeSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { MANIFEST_FILE } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { subtreeOf } from './chain.js';
import { syncDir } from './staging.js';
import type { Store } from './store.js';
import { TagLock } from './tag-lock.js';
import { inTurn } from './turn.js';
import { takeUse } from './use-lock.js';

export interface RemoveOptions {
  /** What is made of the tag goes with it. */
  cascade?: boolean;
  /** Whether or not something is made of it or uses it. */
  force?: boolean;
}

export const removeTags = (store: Store, tag: string, { cascade = false, force = false }: RemoveOptions): string[] => {
  // One that is being written for the first time is not there yet.
  if (!store.exists(tag))
    throw new ForkdError(TagLock.isHeld(store.root, tag) ? 'SNAPSHOT_BUSY' : 'SNAPSHOT_NOT_FOUND', { tag });
  const locks: { release(): void }[] = [];
  const gone: string[] = [];
  try {
    const tags = inTurn(store.root, tag, () => {
      if (!cascade && !force) store.requireNoDependents(tag);
      const all = store.manifests();
      const order = cascade ? subtreeOf(tag, all.find((one) => one.tag === tag)?.memory_root, all) : [tag];
      // All of them or none: every lock is taken before the first rename.
      for (const name of order) locks.push(store.lock(name));
      if (!force) for (const name of order) locks.push(useLock(store, name));
      for (const name of order) gone.push(hide(store, name));
      return order;
    });
    syncDir(store.root);
    return tags;
  } finally {
    for (const path of gone) rmSync(path, { recursive: true, force: true });
    for (const lock of locks) lock.release();
  }
};

const useLock = (store: Store, tag: string): { release(): void } => {
  const fd = takeUse(join(store.dir(tag), MANIFEST_FILE), tag);
  return { release: () => fd !== undefined && closeSync(fd) };
};

/** Returns the directory that holds what was the tag. */
const hide = (store: Store, tag: string): string => {
  const trash = store.trash(tag);
  try {
    native.rename2(store.dir(tag), join(trash, 'removed'), 'noreplace');
    return trash;
  } catch (error) {
    rmSync(trash, { recursive: true, force: true });
    throw errnoOf(error) === 'ENOENT' ? new ForkdError('SNAPSHOT_NOT_FOUND', { tag }) : error;
  }
};
