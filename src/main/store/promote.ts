/**
 * Makes a tag mean another snapshot, in one instant. What it meant before stays, under a name beside it (`TAG-1`) unless it has
 * another name already: children are made of it, and it may be wanted back. Both are links to files that are there; nothing is copied. Killed anywhere between, the
 * tag means the old or the new, and at most one more name is there.
 */
import { copyFileSync, constants, existsSync, linkSync, readdirSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import { parseTag, TAG_MAX } from '../../contract/names.js';
import {
  ARRIVED_FILE,
  MANIFEST_FILE,
  MEMORY_FILE,
  REMOTE_FILE,
  type SnapshotManifest,
  STATE_FILE,
} from '../../contract/snapshot.js';
import { Undo } from '../undo.js';
import type { OpenChain } from './open-chain.js';
import type { Staging } from './staging.js';
import { type Store, usersOfDisks } from './store.js';
import { movedTo } from './tag-dir.js';

export interface PromoteRequest {
  from: string;
  /** The tag that is to mean it. */
  as: string;
  /** Where it comes from, when `from` is a name that will go: the id of a sandbox. */
  promotedFrom?: string;
}

export interface Promoted {
  manifest: SnapshotManifest;
  dir: string;
  /** The name that what it meant before has now; absent when the tag is new. */
  previous?: string;
  /** It had that name before. */
  hadName: boolean;
}

/** Throws SNAPSHOT_NOT_FOUND and what else opening the chain throws, SNAPSHOT_BUSY, SNAPSHOT_HAS_DEPENDENTS; then the tag is as it was. */
export const promote = async (store: Store, request: PromoteRequest): Promise<Promoted> => {
  const [from, as] = [parseTag(request.from), parseTag(request.as)];
  if (from === as) throw new ForkdError('SNAPSHOT_EXISTS', { tag: as });
  const undo = new Undo();
  try {
    const chain = store.hold(from);
    undo.push(() => chain.close());
    const lock = store.lock(as);
    undo.push(() => lock.release());
    const before = store.exists(as) ? store.hold(as) : undefined;
    if (before) undo.push(() => before.close());
    const staging = store.stage(as);
    undo.push(() => staging.discard());
    for (const name of filesOf(chain.folder)) link(chain.folder, staging, name);
    if (before) carryDisks(store, before, staging, as);
    const name = before && otherName(store, before, as);
    const previous = before && (name ?? (await keep(store, before, as)));
    const manifest = manifestOf(chain, store.dir(as), request, previous);
    staging.publish(manifest, true, { disksStay: true });
    const hadName = name !== undefined;
    return { manifest, dir: store.dir(as), hadName, ...(previous === undefined ? {} : { previous }) };
  } finally {
    await undo.run();
  }
};

const manifestOf = (
  chain: OpenChain,
  dir: string,
  { from, as, promotedFrom = from }: PromoteRequest,
  previous: string | undefined,
): SnapshotManifest => {
  const moved = movedTo(chain.manifest, dir);
  // Made of what the tag meant until now.
  const isOfPrevious = moved.parent_tag === as && previous !== undefined;
  return {
    ...moved,
    tag: as,
    ...(isOfPrevious ? { parent_tag: previous } : {}),
    promoted_from: promotedFrom,
    created_at_unix: Math.floor(Date.now() / 1000),
  };
};

/** A tag that is the same snapshot by its files: what was promoted before, or kept by a promotion that did not come to its end. */
const otherName = (store: Store, before: OpenChain, tag: string): string | undefined => {
  const { memory, vmstate, memory_root } = before.manifest;
  return store
    .manifests()
    .filter((one) => one.tag !== tag && one.memory_root === memory_root)
    .filter((one) => isSame(one.memory, memory) && isSame(one.vmstate, vmstate))
    .map((one) => one.tag)
    .sort()[0];
};

/** The same snapshot under a second name; with the very snapshot.json, so that who uses it is known under this name too. */
const keep = async (store: Store, before: OpenChain, tag: string): Promise<string> => {
  const undo = new Undo();
  try {
    const name = freeTag(store, tag);
    const lock = store.lock(name);
    undo.push(() => lock.release());
    const staging = store.stage(name);
    undo.push(() => staging.discard());
    for (const file of [MANIFEST_FILE, ...filesOf(before.folder)]) link(before.folder, staging, file);
    staging.publishAgain();
    return name;
  } finally {
    await undo.run();
  }
};

/** Others boot from disks in the old directory, by their paths: the same files have to be in the new one. Throws SNAPSHOT_HAS_DEPENDENTS. */
const carryDisks = (store: Store, before: OpenChain, staging: Staging, tag: string): void => {
  const dir = store.dir(tag);
  const users = usersOfDisks(
    dir,
    store.manifests().filter((one) => one.tag !== tag),
  );
  if (users.length === 0) return;
  for (const name of disksOf(before.folder)) {
    if (!existsSync(staging.file(name))) link(before.folder, staging, name);
    else if (!isSame(join(before.folder, name), staging.file(name)))
      throw new ForkdError('SNAPSHOT_HAS_DEPENDENTS', { tag, dependents: users.join(', ') });
  }
};

const OWN_FILES = [MANIFEST_FILE, STATE_FILE, MEMORY_FILE];
const HALF_FILES = [MANIFEST_FILE, REMOTE_FILE, ARRIVED_FILE];

/** What is whole; a name that starts with a dot is a file that is being written. */
const filesOf = (dir: string): string[] =>
  readdirSync(dir).filter((name) => !HALF_FILES.includes(name) && !name.startsWith('.'));

const disksOf = (dir: string): string[] => filesOf(dir).filter((name) => !OWN_FILES.includes(name));

const isSame = (a: string, b: string): boolean => {
  const [x, y] = [a, b].map((path) => statSync(path, { throwIfNoEntry: false }));
  return x !== undefined && x.dev === y?.dev && x.ino === y.ino;
};

/** A file is never changed once its snapshot is there, so two names may share it. Where links cannot be made it is copied. */
const link = (folder: string, staging: Staging, name: string): void => {
  const from = join(folder, name);
  try {
    linkSync(from, staging.file(basename(name)));
  } catch (error) {
    if (!['EPERM', 'EMLINK', 'ENOTSUP', 'EOPNOTSUPP', 'EXDEV'].includes(errnoOf(error) ?? '')) throw error;
    copyFileSync(from, staging.file(basename(name)), constants.COPYFILE_FICLONE);
  }
};

/** `TAG-1`, or the next that is free. */
const freeTag = (store: Store, tag: string): string => {
  for (let n = 1; ; n++) {
    const name = `${tag.slice(0, TAG_MAX - 1 - String(n).length)}-${n}`;
    if (!store.exists(name)) return name;
  }
};
