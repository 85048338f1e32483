/** A snapshot being written, in a directory that is not yet a tag. */
import { closeSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { MANIFEST_FILE, type SnapshotManifest } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { resolveChain } from './chain.js';
import { writeManifest } from './manifest.js';
import type { Store } from './store.js';
import { inTurn } from './turn.js';

export class Staging {
  constructor(
    readonly store: Store,
    readonly tag: string,
    readonly path: string,
  ) {}

  file(name: string): string {
    return join(this.path, name);
  }

  /**
   * Makes the tag appear, or replaces the old one in the same instant. The caller holds the tag's lock and has fsynced the files.
   * Throws SNAPSHOT_EXISTS, and what requireLinks throws: then the tag is as it was.
   */
  publish(manifest: SnapshotManifest, replace: boolean): void {
    const { store, tag } = this;
    const final = store.dir(tag);
    writeManifest(this.file(MANIFEST_FILE), manifest);
    syncDir(this.path);
    inTurn(store.root, tag, () => {
      requireLinks(store, manifest);
      try {
        native.rename2(this.path, final, 'noreplace');
      } catch (error) {
        if (errnoOf(error) !== 'EEXIST') throw error;
        if (!replace) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
        store.requireNoDependents(tag);
        native.rename2(this.path, final, 'exchange');
      }
    });
    syncDir(store.root);
    // What was replaced, if anything.
    this.discard();
  }

  discard(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/**
 * May a snapshot be made that says this about its parents? Asked again when it is published.
 * Throws PARENT_MISSING, PARENT_ALTERED, CHAIN_CYCLE, CHAIN_TOO_DEEP.
 */
export const requireLinks = (store: Store, manifest: SnapshotManifest): void => {
  resolveChain(manifest.tag, (name) => (name === manifest.tag ? { manifest } : { manifest: store.manifest(name) }));
};

export const syncDir = (path: string): void => {
  const fd = openSync(path, 'r');
  try {
    native.fdSync(fd);
  } finally {
    closeSync(fd);
  }
};
