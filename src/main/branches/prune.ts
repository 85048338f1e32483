/**
 * What of the tree nobody needs. A tag stays when it is what a sandbox runs from, the state or the source of a workspace, or the
 * parent of a tag that stays; and when it is a base, or was promoted, unless those are asked for.
 */
import { readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import type { PruneReport, PruneRequest } from '../../contract/branches.js';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import type { SnapshotSummary } from '../../contract/snapshot.js';
import { type Found, snapshotOf } from './tree.js';

export interface PrunePlan {
  /** Children first. */
  remove: SnapshotSummary[];
  kept: { tag: string; reason: string }[];
}

/** `inUse` says who reads a tag's files, if anybody does. Throws SNAPSHOT_NOT_FOUND for an `under` that is not there. */
export const planPrune = (
  found: Found,
  request: PruneRequest,
  now: number,
  inUse: (tag: string) => string | undefined = () => undefined,
): PrunePlan => {
  const { snapshots } = found;
  const { under, all = false, older_than_secs: age = 0, keep = 0, only } = request;
  if (under !== undefined && !snapshots.some(({ tag }) => tag === under))
    throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag: under });
  const scope = under === undefined ? snapshots : snapshots.filter(({ tag }) => isBelow(tag, under, snapshots));
  const reasons = neededBy(found);
  const note = (tag: string, reason: string) => {
    if (!reasons.has(tag)) reasons.set(tag, reason);
  };
  const newest = [...scope].sort((a, b) => b.created_at_unix - a.created_at_unix || a.tag.localeCompare(b.tag));
  let young = keep;
  for (const one of newest) {
    const { tag, parent_tag, branched_from, promoted_from } = one;
    if (!all && promoted_from !== undefined) note(tag, 'it was promoted');
    else if (!all && parent_tag === undefined && branched_from === undefined) note(tag, 'it is a base');
    else if (young-- > 0) note(tag, `it is one of the ${keep} newest`);
    else if (now - one.created_at_unix < age) note(tag, 'it is too young');
    else if (only && !only.includes(tag)) note(tag, 'it was not named');
    else {
      const user = inUse(tag);
      if (user !== undefined) note(tag, user);
    }
  }
  // What is out of scope stays, whatever it is, and so does what it is made of.
  const goes = new Set(scope.filter(({ tag }) => !reasons.has(tag)).map(({ tag }) => tag));
  for (let isSettled = false; !isSettled; ) {
    isSettled = true;
    for (const { tag, parent_tag: parent } of snapshots) {
      if (goes.has(tag) || parent === undefined || !goes.has(parent)) continue;
      goes.delete(parent);
      note(parent, `'${tag}' is made of it`);
      isSettled = false;
    }
  }
  const remove = snapshots.filter(({ tag }) => goes.has(tag));
  return {
    remove: remove.sort((a, b) => b.chain_depth - a.chain_depth || a.tag.localeCompare(b.tag)),
    kept: scope
      .filter(({ tag }) => !goes.has(tag))
      .map(({ tag }) => ({ tag, reason: reasons.get(tag) ?? '' }))
      .sort((a, b) => a.tag.localeCompare(b.tag)),
  };
};

/** Removes what a plan says, one after the other; what cannot go any more is kept, with the reason. */
export const prune = async (
  { remove, kept }: PrunePlan,
  isDry: boolean,
  removeTag: (tag: string) => void | Promise<void>,
): Promise<PruneReport> => {
  const files = filesOf(remove);
  const removed: PruneReport['removed'] = [];
  const left = [...kept];
  for (const { tag, created_at_unix } of remove) {
    try {
      if (!isDry) await removeTag(tag);
      removed.push({ tag, created_at_unix });
    } catch (error) {
      left.push({ tag, reason: reasonOf(error) });
    }
  }
  const gone = new Set(removed.map(({ tag }) => tag));
  return { dry_run: isDry, removed, kept: left, freed_bytes: bytesOf(files.filter(({ tag }) => gone.has(tag))) };
};

const neededBy = ({ snapshots, sandboxes, workspaces }: Found): Map<string, string> => {
  const reasons = new Map<string, string>();
  for (const sandbox of sandboxes) {
    const tag = snapshotOf(sandbox, snapshots);
    if (tag !== undefined) reasons.set(tag, `sandbox ${sandbox.id} runs from it`);
  }
  for (const { name, current_state_tag: state, source_snapshot_tag: source } of workspaces)
    reasons.set(state ?? source, `workspace ${name} would be resumed from it`);
  return reasons;
};

const isBelow = (tag: string, top: string, snapshots: SnapshotSummary[]): boolean => {
  const seen = new Set<string>([tag]);
  const parentOf = (name: string) => snapshots.find((one) => one.tag === name)?.parent_tag;
  for (let at = parentOf(tag); at !== undefined && !seen.has(at); at = parentOf(at)) {
    if (at === top) return true;
    seen.add(at);
  }
  return false;
};

interface TagFile {
  tag: string;
  ino: number;
  links: number;
  bytes: number;
}

const filesOf = (snapshots: SnapshotSummary[]): TagFile[] =>
  snapshots.flatMap(({ tag, dir }) => {
    try {
      return readdirSync(dir).map((name) => {
        const { ino, nlink, blocks } = statSync(join(dir, name));
        return { tag, ino, links: nlink, bytes: blocks * 512 };
      });
    } catch {
      return [];
    }
  });

/** Of files whose every name is gone: a promoted tag shares its files with the one that it was. */
const bytesOf = (files: TagFile[]): number =>
  files
    .filter((one, i) => files.findIndex(({ ino }) => ino === one.ino) === i)
    .filter((one) => files.filter(({ ino }) => ino === one.ino).length === one.links)
    .reduce((sum, { bytes }) => sum + bytes, 0);
