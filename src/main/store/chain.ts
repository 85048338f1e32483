/**
 * Chains: a snapshot whose memory is a difference names its parent, and so on to a base. Every link is recognised by its root
 * hash, which covers its contents and, through its own parent's root, everything below it. It is found by its name; where
 * another snapshot has got that name (`promote`), by its root.
 */
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import type { SnapshotManifest } from '../../contract/snapshot.js';

export interface Link {
  manifest: SnapshotManifest;
}

/** Where a parent is that had this name and has this root: its name, unless another has taken it. */
export type Locate = (name: string, root: string) => string;

/**
 * The links of a tag, base first, itself last; `open` makes one of a name. The way to the base is walked before any link is
 * compared. Throws CHAIN_CYCLE, CHAIN_TOO_DEEP, PARENT_MISSING, PARENT_ALTERED and what `open` throws for the tag itself.
 */
export const resolveChain = <T extends Link>(
  tag: string,
  open: (tag: string) => T,
  locate: Locate = (name) => name,
): T[] => {
  const links = [open(tag)];
  const seen = [tag];
  for (let child = links[0] as T; child.manifest.parent_tag !== undefined; child = links[0] as T) {
    const parent = locate(child.manifest.parent_tag, child.manifest.parent_content_hash ?? '');
    if (seen.includes(parent)) throw new ForkdError('CHAIN_CYCLE', { tag, cycle: [...seen, parent].join(' -> ') });
    if (links.length > limits.chainDepthMax) throw new ForkdError('CHAIN_TOO_DEEP', { tag, max: limits.chainDepthMax });
    links.unshift(openParent(child.manifest.tag, parent, open));
    seen.push(parent);
  }
  for (const [i, { manifest }] of links.entries()) requireParent(manifest, links[i - 1]?.manifest);
  return links;
};

const openParent = <T>(tag: string, parent: string, open: (tag: string) => T): T => {
  try {
    return open(parent);
  } catch (error) {
    if (error instanceof ForkdError && error.code === 'SNAPSHOT_NOT_FOUND') {
      throw new ForkdError('PARENT_MISSING', { tag, parent }, error);
    }
    throw error;
  }
};

/** Throws PARENT_ALTERED unless `parent` is the very one that `child` was made from. */
const requireParent = (child: SnapshotManifest, parent: SnapshotManifest | undefined): void => {
  const expected = child.parent_content_hash ?? '';
  if (!parent || parent.memory_root === expected) return;
  const details = { tag: child.tag, parent: parent.tag, actual: short(parent.memory_root), expected: short(expected) };
  throw new ForkdError('PARENT_ALTERED', details);
};

const short = (root: string): string => root.slice(0, 16);

/** Finds parents among manifests. A name that is free, or whose own root nobody can tell, is believed. */
export const locateAmong =
  (all: SnapshotManifest[]): Locate =>
  (name, root) =>
    all.some((one) => one.tag === name && one.memory_root === root)
      ? name
      : (all.filter((one) => one.memory_root === root).sort(byTag)[0]?.tag ?? name);

/** The children of a tag among `all`, by name. One that was made from another version of the tag is none. */
export const dependentsOf = (tag: string, root: string | undefined, all: SnapshotManifest[]): SnapshotManifest[] => {
  const locate = locateAmong(all);
  return all
    .filter((one) => one.tag !== tag && one.parent_tag !== undefined)
    .filter((one) => locate(one.parent_tag as string, one.parent_content_hash as string) === tag)
    .filter((one) => root === undefined || one.parent_content_hash === root)
    .sort(byTag);
};

const byTag = (a: SnapshotManifest, b: SnapshotManifest): number => a.tag.localeCompare(b.tag);

/** A tag's children, theirs, and so on, in an order in which they can be removed: leaves first, the tag itself last. */
export const subtreeOf = (tag: string, root: string | undefined, all: SnapshotManifest[]): string[] => {
  const order: string[] = [];
  const seen = new Set<string>();
  const visit = (name: string, hash: string | undefined) => {
    if (seen.has(name)) return;
    seen.add(name);
    for (const child of dependentsOf(name, hash, all)) visit(child.tag, child.memory_root);
    order.push(name);
  };
  visit(tag, root);
  return order;
};
