/** What is in the store, with what each tag costs. */
import { existsSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { reasonOf } from '../../contract/errors.js';
import { CHUNK_BYTES } from '../../contract/page-map.js';
import type { SnapshotDetail, SnapshotManifest, SnapshotSummary } from '../../contract/snapshot.js';
import type { Store } from './store.js';
import { readWorkingSet } from './working-set.js';

export const summarize = (store: Store): SnapshotSummary[] =>
  store
    .tags()
    .flatMap((tag) => summary(store, tag) ?? [])
    .sort((a, b) => b.created_at_unix - a.created_at_unix || a.tag.localeCompare(b.tag));

const summary = (store: Store, tag: string): SnapshotSummary | undefined => {
  const dir = store.dir(tag);
  const found = statSync(dir, { throwIfNoEntry: false });
  if (!found?.isDirectory()) return undefined;
  const common = { tag, dir, bytes: filesOnDisk(dir), rootfs: existsSync(join(dir, 'rootfs.ext4')) };
  try {
    const m = store.open(tag);
    const told = { ...common, ...describe(m), rootfs: existsSync(m.rootfs), shared_bytes: 0, chain_depth: 0 };
    try {
      const ancestors = store.chain(tag).slice(0, -1);
      const figures = { shared_bytes: onDisk(ancestors.map((a) => a.memory)), chain_depth: ancestors.length };
      return { ...told, ...figures, ...parentOf(ancestors) };
    } catch (error) {
      return { ...told, problem: reasonOf(error) };
    }
  } catch (error) {
    const unknown = { memory_bytes: 0, shared_bytes: 0, chain_depth: 0 };
    return { ...common, ...unknown, created_at_unix: Math.floor(found.mtimeMs / 1000), problem: reasonOf(error) };
  }
};

const describe = (m: SnapshotManifest) => ({
  memory_bytes: m.memory_bytes,
  created_at_unix: m.created_at_unix,
  isolation: m.isolation,
  memory_root: m.memory_root,
  ...(m.parent_tag === undefined ? {} : { parent_tag: m.parent_tag }),
  ...(m.branched_from === undefined ? {} : { branched_from: m.branched_from }),
  ...(m.promoted_from === undefined ? {} : { promoted_from: m.promoted_from }),
});

/** By the name that it has now. */
const parentOf = (ancestors: SnapshotManifest[]): { parent_tag?: string } => {
  const parent = ancestors.at(-1);
  return parent ? { parent_tag: parent.tag } : {};
};

/** Throws as Store.chain does. */
export const detail = (store: Store, tag: string): SnapshotDetail => {
  const manifest = store.open(tag);
  const ancestors = store.chain(tag).slice(0, -1);
  const { parent_content_hash, branched_from } = manifest;
  const workingSet = readWorkingSet(store.dir(tag), Math.ceil(manifest.memory_bytes / CHUNK_BYTES));
  return {
    tag,
    dir: store.dir(tag),
    created_at_unix: manifest.created_at_unix,
    memory_logical_bytes: manifest.memory_bytes,
    memory_physical_bytes: onDisk([manifest.memory]),
    shared_bytes: onDisk(ancestors.map((a) => a.memory)),
    vmstate_bytes: manifest.vmstate_bytes,
    working_set_bytes: workingSet ? workingSet.length * CHUNK_BYTES : null,
    memory_root: manifest.memory_root,
    ...parentOf(ancestors),
    ...(parent_content_hash === undefined ? {} : { parent_content_hash }),
    ...(branched_from === undefined ? {} : { branched_from }),
    chain_depth: ancestors.length,
    dependents: store.dependents(tag),
    ancestors: ancestors.map((a) => a.tag),
  };
};

const filesOnDisk = (dir: string): number => {
  try {
    return onDisk(readdirSync(dir).map((name) => join(dir, name)));
  } catch {
    return 0;
  }
};

/** Files that are gone by now took nothing. */
const onDisk = (paths: string[]): number =>
  paths.reduce((sum, path) => sum + (statSync(path, { throwIfNoEntry: false })?.blocks ?? 0) * 512, 0);
