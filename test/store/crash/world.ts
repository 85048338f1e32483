/** The store that the crash tests start from, what is done to it, and what may be in it after. */
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { findLeftovers, removeLeftover } from '../../../src/main/host/cleanup.js';
import type { Pool } from '../../../src/main/pool.js';
import { compact } from '../../../src/main/store/compact.js';
import { promote } from '../../../src/main/store/promote.js';
import { Store } from '../../../src/main/store/store.js';
import { compact as compactTask } from '../../../src/workers/tasks/compact.js';
import { CHUNK_BYTES } from '../../../src/contract/page-map.js';
import { PAGE, type Pages, putBase, putDiff, type Subject } from '../../support/layers.js';

/** Contents of tags. */
export type Tags = Record<string, Pages>;

export const storeOf = (data: string): Store => new Store(join(data, 'forkd/snapshots'));

const LONE: Pages = { 3: 9 };
export const BASE: Pages = { 0: 1, 16: 2, 64: 3 };
/** What the subject, a process that has the image of nothing, has written. */
export const WRITTEN: Pages = { 16: 7, 32: 8 };
export const CHILD: Pages = { ...BASE, ...WRITTEN };

export const BEFORE: Tags = { lone: LONE, base: BASE, child: CHILD };

export const makeBefore = (data: string, subject: Subject): void => {
  const store = storeOf(data);
  putBase(store, 'lone', LONE);
  putBase(store, 'base', BASE);
  putDiff(store, 'child', 'base', subject);
};

export interface Operation {
  run: (data: string, subject: Pick<Subject, 'pid' | 'memfd'>) => Promise<unknown> | unknown;
  /** What the tags are, step by step: each of these is a whole state, and nothing between them is. */
  states: Tags[];
}

const without = (...tags: string[]): Tags =>
  Object.fromEntries(Object.entries(BEFORE).filter(([tag]) => !tags.includes(tag)));

/** The task itself, in this thread: what is looked at is what it does to files. */
const here = {
  run: async (_: 'compact', input: Parameters<typeof compactTask>[0]) => compactTask(input),
} as unknown as Pool;

export const compactHere = (store: Store, from: string, to: string) => compact(store, { from, to }, here);

const NEW: Pages = { 5: 5, 500: 6 };

export const operations: Record<string, Operation> = {
  snapshot: {
    run: (data) => putBase(storeOf(data), 'new', NEW),
    states: [BEFORE, { ...BEFORE, new: NEW }],
  },
  'snapshot --force': {
    run: (data) => putBase(storeOf(data), 'lone', NEW, {}, true),
    states: [BEFORE, { ...BEFORE, lone: NEW }],
  },
  diff: {
    run: (data, subject) => putDiff(storeOf(data), 'grandchild', 'child', subject as Subject),
    states: [BEFORE, { ...BEFORE, grandchild: CHILD }],
  },
  compact: {
    run: (data) => compactHere(storeOf(data), 'child', 'flat'),
    states: [BEFORE, { ...BEFORE, flat: CHILD }],
  },
  rmi: {
    run: (data) => storeOf(data).remove('lone'),
    states: [BEFORE, without('lone')],
  },
  'rmi --cascade': {
    run: (data) => storeOf(data).remove('base', { cascade: true }),
    states: [BEFORE, without('child'), without('child', 'base')],
  },
  promote: {
    run: (data) => promote(storeOf(data), { from: 'child', as: 'base' }),
    states: [BEFORE, { ...BEFORE, 'base-1': BASE }, { ...BEFORE, 'base-1': BASE, base: CHILD }],
  },
  cleanup: {
    run: (data) => cleanUp(data),
    states: [BEFORE],
  },
};

/** Chunks in which some tag has a page at some time. */
export const CHUNKS_OF_NOTE = [
  ...new Set(
    Object.values(operations)
      .flatMap(({ states }) => states.flatMap((tags) => Object.values(tags).flatMap(Object.keys)))
      .map((page) => Math.floor(Number(page) / (CHUNK_BYTES / PAGE))),
  ),
];

/** Leftovers of commands that were killed, for `cleanup` to be killed over. */
export const leaveThings = (data: string): void => {
  const store = storeOf(data);
  const put = (path: string) => closeSync(openSync(path, 'w'));
  const staging = store.stage('lone');
  put(staging.file('memory.layer'));
  put(staging.file('vmstate'));
  put(join(store.trash('gone'), 'removed'));
};

/** `forkd cleanup --yes`, for what is in `data`. */
export const cleanUp = async (data: string): Promise<void> => {
  process.env['XDG_DATA_HOME'] = data;
  for (const leftover of findLeftovers().remove) {
    if (leftover.path.startsWith(data)) await removeLeftover(leftover);
  }
};
