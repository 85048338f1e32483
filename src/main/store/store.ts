/**
 * The snapshot store: `<data>/snapshots/<tag>/{snapshot.json,vmstate,memory.bin}`.
 *
 * A tag is written into `.staging-<tag>-XXXXXX`, fsynced and renamed: it is wholly there or wholly absent. A lock file for
 * each tag orders writers and removers between processes; readers need it only while they open the files.
 */
import { closeSync, existsSync, mkdirSync, mkdtempSync, openSync, readdirSync, rmSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { isTag, parseTag } from '../../contract/names.js';
import type { SnapshotManifest, SnapshotSummary } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { formatBytes } from '../../contract/units.js';
import { MANIFEST_FILE, readManifest, writeManifest } from './manifest.js';
import { TagLock } from './tag-lock.js';

const STAGING_PREFIX = '.staging-';

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

  /** The manifest of a tag whose files are all there. Throws SNAPSHOT_NOT_FOUND, SNAPSHOT_CORRUPT. */
  open(tag: string): SnapshotManifest {
    const dir = this.dir(tag);
    if (!existsSync(dir)) throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag });
    const manifest = readManifest(tag, join(dir, MANIFEST_FILE));
    // The recorded paths are for other readers; ours are found beside the manifest, so a store can be moved.
    const vmstate = join(dir, basename(manifest.vmstate));
    const memory = join(dir, basename(manifest.memory));
    this.#requireFile(tag, vmstate, manifest.vmstate_bytes);
    this.#requireFile(tag, memory, manifest.memory_bytes);
    return { ...manifest, tag, vmstate, memory };
  }

  #requireFile(tag: string, path: string, bytes: number): void {
    const actual = sizeOf(path);
    if (actual === undefined) throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `${path} is missing` });
    if (actual !== bytes) {
      throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `${path} has ${actual} bytes instead of ${bytes}` });
    }
  }

  /** Every tag, newest first, ties by name. A damaged one is listed with its problem. */
  list(): SnapshotSummary[] {
    const tags = this.#entries().filter((name) => isTag(name));
    return tags
      .map((tag) => this.#summary(tag))
      .filter((s) => s !== undefined)
      .sort((a, b) => b.created_at_unix - a.created_at_unix || a.tag.localeCompare(b.tag));
  }

  #summary(tag: string): SnapshotSummary | undefined {
    const dir = this.dir(tag);
    let modified: number;
    try {
      modified = Math.floor(statSync(dir).mtimeMs / 1000);
    } catch {
      return undefined;
    }
    const files = readdirSync(dir).map((name) => statSync(join(dir, name)));
    const bytes = files.reduce((sum, f) => sum + f.blocks * 512, 0);
    const common = { tag, dir, bytes, rootfs: existsSync(join(dir, 'rootfs.ext4')) };
    const memory = sizeOf(join(dir, 'memory.bin')) ?? 0;
    try {
      const m = this.open(tag);
      return {
        ...common,
        memory_bytes: m.memory_bytes,
        created_at_unix: m.created_at_unix,
        isolation: m.isolation,
        rootfs: existsSync(m.rootfs),
      };
    } catch (error) {
      return { ...common, memory_bytes: memory, created_at_unix: modified, problem: reasonOf(error) };
    }
  }

  /** Removes a tag: out of sight by one rename, then its files. Throws SNAPSHOT_NOT_FOUND, SNAPSHOT_BUSY. */
  remove(tag: string): void {
    const lock = this.lock(tag);
    try {
      const gone = mkdtempSync(join(this.root, `${STAGING_PREFIX}${tag}-`));
      try {
        native.rename2(this.dir(tag), join(gone, 'removed'), 'noreplace');
      } catch (error) {
        if (errnoOf(error) === 'ENOENT') throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag });
        throw error;
      } finally {
        rmSync(gone, { recursive: true, force: true });
      }
    } finally {
      lock.release();
    }
  }

  /** Staging directories whose writer is gone. */
  abandoned(): string[] {
    return this.#entries()
      .filter((name) => name.startsWith(STAGING_PREFIX))
      .filter((name) => !TagLock.isHeld(this.root, name.slice(STAGING_PREFIX.length, -7)))
      .map((name) => join(this.root, name));
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

/** A snapshot being written. */
export class Staging {
  constructor(
    readonly store: Store,
    readonly tag: string,
    readonly path: string,
  ) {}

  file(name: string): string {
    return join(this.path, name);
  }

  /** Makes the tag appear, or replaces the old one in the same instant. The caller holds the tag's lock. */
  publish(manifest: SnapshotManifest, replace: boolean): void {
    const final = this.store.dir(this.tag);
    writeManifest(this.file(MANIFEST_FILE), manifest);
    syncDir(this.path);
    try {
      native.rename2(this.path, final, 'noreplace');
    } catch (error) {
      if (errnoOf(error) !== 'EEXIST') throw error;
      if (!replace) throw new ForkdError('SNAPSHOT_EXISTS', { tag: this.tag });
      native.rename2(this.path, final, 'exchange');
      rmSync(this.path, { recursive: true, force: true });
    }
    syncDir(this.store.root);
  }

  discard(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

const syncDir = (path: string): void => {
  const fd = openSync(path, 'r');
  try {
    native.fdSync(fd);
  } finally {
    closeSync(fd);
  }
};

const sizeOf = (path: string): number | undefined => {
  try {
    const stat = statSync(path);
    return stat.isFile() ? stat.size : undefined;
  } catch {
    return undefined;
  }
};
