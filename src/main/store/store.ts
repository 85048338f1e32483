/**
 * The snapshot store: `<data>/snapshots/<tag>/{snapshot.json,vmstate,memory.layer}`.
 *
 * A tag is written into `.staging-<tag>-XXXXXX`, fsynced and renamed; it is removed by a rename to `.trash-<tag>-XXXXXX`: it is
 * wholly there or wholly absent. A lock file for each tag orders those who write and remove it; users mark what they use.
 */
import { closeSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { isTag, parseTag } from '../../contract/names.js';
import { MANIFEST_FILE, REMOTE_FILE, type SnapshotManifest, type SnapshotSummary } from '../../contract/snapshot.js';
import { formatBytes } from '../../contract/units.js';
import { native } from '../../native/binding.js';
import { dependentsOf, type Locate, locateAmong, resolveChain } from './chain.js';
import { summarize } from './listing.js';
import { OpenChain } from './open-chain.js';
import { type RemoveOptions, removeTags } from './removal.js';
import { Staging } from './staging.js';
import { TagDir } from './tag-dir.js';
import { TagLock } from './tag-lock.js';
import { takeUse } from './use-lock.js';

const STAGING_PREFIX = '.staging-';
const TRASH_PREFIX = '.trash-';
/** What mkdtemp puts behind a name. */
const SUFFIX_CHARS = '-XXXXXX'.length;

export class Store {
  constructor(readonly root: string) {}

  dir(tag: string): string {
    return join(this.root, parseTag(tag));
  }

  exists(tag: string): boolean {
    return existsSync(this.dir(tag));
  }

  /** Takes the tag for writing or removal. Throws SNAPSHOT_BUSY when another process has it. */
  lock(tag: string): TagLock {
    this.dir(tag);
    return TagLock.take(this.root, tag);
  }

  /** Throws DISK_FULL when `bytes` would not fit, before any work is done for them. */
  requireSpace(bytes: number): void {
    mkdirSync(this.root, { recursive: true });
    const { free } = native.diskSpace(this.root);
    const needed = bytes + limits.diskReserveBytes;
    if (free < needed) {
      throw new ForkdError('DISK_FULL', { path: this.root, needed: formatBytes(needed), free: formatBytes(free) });
    }
  }

  /** Starts a new snapshot; the holder of the tag's lock publishes or discards it. */
  stage(tag: string): Staging {
    mkdirSync(this.root, { recursive: true });
    return new Staging(this, tag, mkdtempSync(join(this.root, `${STAGING_PREFIX}${tag}-`)));
  }

  /** Where a tag goes when it is removed: its directory is renamed to `removed` in there. */
  trash(tag: string): string {
    return mkdtempSync(join(this.root, `${TRASH_PREFIX}${tag}-`));
  }

  /**
   * The manifest of a tag whose own files are whole; its chain is not looked at.
   * Throws SNAPSHOT_NOT_FOUND, SNAPSHOT_CORRUPT, SNAPSHOT_INCOMPATIBLE.
   */
  open(tag: string): SnapshotManifest {
    const dir = TagDir.open(this.dir(tag), tag);
    try {
      dir.openState();
      dir.openMemory();
      return dir.manifest;
    } finally {
      dir.close();
    }
  }

  /** What a tag says about itself. Throws as `open` does. */
  manifest(tag: string): SnapshotManifest {
    const dir = TagDir.open(this.dir(tag), tag);
    dir.close();
    return dir.manifest;
  }

  /** The manifests of a tag and its ancestors, base first. Throws as `open` does, and what resolveChain throws. */
  chain(tag: string): SnapshotManifest[] {
    const open = (name: string) => ({ manifest: this.manifest(name) });
    return resolveChain(tag, open, this.locate).map(({ manifest }) => manifest);
  }

  /** The tag that a parent has, which had this name when a difference to it was made. */
  readonly locate: Locate = (name, root) =>
    this.#rootOf(name) === root ? name : locateAmong(this.manifests())(name, root);

  #rootOf(tag: string): string | undefined {
    try {
      return this.manifest(tag).memory_root;
    } catch {
      return undefined;
    }
  }

  /** Opens every file of a tag and its ancestors, and marks all of them as in use. Throws as `chain` does, and SNAPSHOT_PARTIAL unless `partial` is allowed. */
  hold(tag: string, options: { partial?: boolean } = {}): OpenChain {
    const open = () => OpenChain.open((name) => this.dir(name), tag, { ...options, locate: this.locate });
    try {
      return open();
    } catch (error) {
      // A parent got another name between the look for it and its opening.
      if (error instanceof ForkdError && error.code === 'PARENT_ALTERED') return open();
      throw error;
    }
  }

  /** It was pulled with --lazy, and not all of it is here. */
  isPartial(tag: string): boolean {
    return existsSync(join(this.dir(tag), REMOTE_FILE));
  }

  /** Every directory that has the name of a tag, in no order. */
  tags(): string[] {
    return this.#entries().filter((name) => isTag(name));
  }

  /** Of every tag that has a readable manifest. */
  manifests(): SnapshotManifest[] {
    return this.tags().flatMap((tag) => {
      try {
        return [this.manifest(tag)];
      } catch {
        return [];
      }
    });
  }

  /** The names of a tag's children. */
  dependents(tag: string): string[] {
    const all = this.manifests();
    const root = all.find((one) => one.tag === tag)?.memory_root;
    return dependentsOf(tag, root, all).map((child) => child.tag);
  }

  /** Throws SNAPSHOT_HAS_DEPENDENTS, unless another tag has the very same memory: then they are its children. */
  requireNoDependents(tag: string, { disksStay = false } = {}): void {
    const all = this.manifests();
    const root = all.find((one) => one.tag === tag)?.memory_root;
    const isAlone = !all.some((one) => one.tag !== tag && one.memory_root === root);
    const dependents = isAlone ? this.dependents(tag) : [];
    const users = disksStay
      ? []
      : usersOfDisks(
          this.dir(tag),
          all.filter((one) => one.tag !== tag),
        );
    const disks = users.filter((user) => !dependents.includes(user));
    if (dependents.length + disks.length === 0) return;
    throw new ForkdError('SNAPSHOT_HAS_DEPENDENTS', { tag, dependents: [...dependents, ...disks].join(', ') });
  }

  /** Every tag, newest first, ties by name. A damaged one is listed with its problem. */
  list(): SnapshotSummary[] {
    return summarize(this);
  }

  /**
   * Removes a tag, and with `cascade` everything that is made of it; returns what was removed, in order. Throws SNAPSHOT_NOT_FOUND,
   * SNAPSHOT_BUSY and, unless forced, SNAPSHOT_HAS_DEPENDENTS and SNAPSHOT_IN_USE: then nothing was removed.
   */
  remove(tag: string, options: RemoveOptions = {}): string[] {
    return removeTags(this, tag, options);
  }

  /** Why a tag could not be removed now: who uses it; undefined when nobody does. */
  userOf(tag: string): string | undefined {
    try {
      const fd = takeUse(join(this.dir(tag), MANIFEST_FILE), tag);
      if (fd !== undefined) closeSync(fd);
      return undefined;
    } catch (error) {
      return reasonOf(error);
    }
  }

  /** Staging and trash directories whose owner is gone. */
  abandoned(): string[] {
    return this.#entries()
      .filter((name) => {
        const tag = leftoverTag(name);
        return tag !== undefined && !TagLock.isHeld(this.root, tag);
      })
      .map((name) => join(this.root, name));
  }

  /** Removes one of those. Throws SNAPSHOT_BUSY: who has the tag's lock may be writing there, or removing. */
  removeAbandoned(path: string): void {
    const lock = TagLock.take(this.root, leftoverTag(basename(path)) ?? '');
    try {
      rmSync(path, { recursive: true, force: true });
    } finally {
      lock.release();
    }
  }

  #entries(): string[] {
    try {
      return readdirSync(this.root);
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return [];
      throw error;
    }
  }
}

/** Those that boot from a disk in a tag's directory, where a pack has put it. */
export const usersOfDisks = (dir: string, all: SnapshotManifest[]): string[] =>
  all
    .filter(({ rootfs, kernel, initrd }) => [rootfs, kernel.path, initrd.path].some((path) => dirname(path) === dir))
    .map(({ tag }) => tag)
    .sort();

/** The tag that a staging or trash directory belongs to, by its name; undefined when it is neither. */
export const leftoverTag = (name: string): string | undefined => {
  const prefix = [STAGING_PREFIX, TRASH_PREFIX].find((p) => name.startsWith(p));
  const tag = prefix && name.slice(prefix.length, -SUFFIX_CHARS);
  return tag && isTag(tag) ? tag : undefined;
};
