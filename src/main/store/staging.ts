/** A snapshot being written, in a directory that is not yet a tag. */
import { closeSync, openSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { MANIFEST_FILE, type SnapshotManifest } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { locateAmong, resolveChain } from './chain.js';
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
   * `disksStay`: what others boot from in the old directory is in the new one too. Throws SNAPSHOT_EXISTS, and what requireLinks
   * throws: then the tag is as it was.
   */
  publish(manifest: SnapshotManifest, replace: boolean, { disksStay = false } = {}): void {
    const { store, tag } = this;
    writeManifest(this.file(MANIFEST_FILE), manifest);
    this.#appear(() => {
      requireLinks(store, manifest);
      if (this.#rename()) return;
      if (!replace) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
      store.requireNoDependents(tag, { disksStay });
      native.rename2(this.path, store.dir(tag), 'exchange');
    });
  }

  /** The same for a snapshot that is there under another name: its manifest is one of the files. Throws SNAPSHOT_EXISTS. */
  publishAgain(): void {
    this.#appear(() => {
      if (!this.#rename()) throw new ForkdError('SNAPSHOT_EXISTS', { tag: this.tag });
    });
  }

  #appear(rename: () => void): void {
    syncDir(this.path);
    inTurn(this.store.root, this.tag, rename);
    syncDir(this.store.root);
    // What was replaced, if anything.
    this.discard();
  }

  /** False when the tag is there. */
  #rename(): boolean {
    try {
      native.rename2(this.path, this.store.dir(this.tag), 'noreplace');
      return true;
    } catch (error) {
      if (errnoOf(error) === 'EEXIST') return false;
      throw error;
    }
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
  const { tag, memory_root } = manifest;
  const open = (name: string) => ({ manifest: name === tag ? manifest : store.manifest(name) });
  const others = () => [...store.manifests().filter((one) => one.tag !== tag), manifest];
  resolveChain(tag, open, (name, root) =>
    (name === tag ? memory_root : undefined) === root ? name : locateAmong(others())(name, root),
  );
};

export const syncDir = (path: string): void => {
  const fd = openSync(path, 'r');
  try {
    native.fdSync(fd);
  } finally {
    closeSync(fd);
  }
};
