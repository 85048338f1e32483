/** Writes a branch to disk: the difference between its memory and that of the snapshot it stems from. */
import { STATE_FILE, MEMORY_FILE, type SnapshotManifest } from '../contract/snapshot.js';
import { parseTag } from '../contract/names.js';
import { ForkdError } from '../contract/errors.js';
import type { Pool } from './pool.js';
import { end } from './sandbox/end.js';
import { makeDiffManifest } from './store/diff.js';
import type { Store } from './store/store.js';
import type { Template } from './template/template.js';
import { Undo } from './undo.js';

export interface WriteBranchRequest {
  tag: string;
  force?: boolean;
  /** Id of the sandbox that was branched. */
  branchedFrom: string;
}

export interface WrittenBranch {
  manifest: SnapshotManifest;
  dir: string;
  state_ms: number;
  memory_ms: number;
  /** Bytes of memory that the branch had changed, and of the file that holds them. */
  dirty_bytes: number;
  written_bytes: number;
}

/** Takes the tag now, so that a name that is taken is refused before anything is copied. Throws SNAPSHOT_EXISTS, SNAPSHOT_BUSY. */
export const reserveTag = (store: Store, { tag, force }: WriteBranchRequest): { release: () => void } => {
  parseTag(tag);
  const lock = store.lock(tag);
  if (!force && store.exists(tag)) {
    lock.release();
    throw new ForkdError('SNAPSHOT_EXISTS', { tag });
  }
  return lock;
};

/** The template may be forked from meanwhile. Throws DISK_FULL, SNAPSHOT_EXISTS and what Staging.publish throws; then the tag is as it was. */
export const writeBranch = async (
  template: Template,
  request: WriteBranchRequest,
  { store, pool }: { store: Store; pool: Pool },
): Promise<WrittenBranch> => {
  const { tag, force = false, branchedFrom } = request;
  const parent = template.manifest;
  const undo = new Undo();
  try {
    const staging = store.stage(tag);
    undo.push(() => staging.discard());
    const copy = await template.runningCopy(pool);
    undo.push(() => end([copy]));
    const saved = await copy.lend(() =>
      pool.run('saveCopy', {
        vm: copy.vmm,
        parentRoot: parent.memory_root,
        statePath: staging.file(STATE_FILE),
        memoryPath: staging.file(MEMORY_FILE),
      }),
    );
    const dir = store.dir(tag);
    const { memory_root: root, state_bytes: stateBytes, ...figures } = saved;
    const manifest = makeDiffManifest(parent, { tag, dir, root, stateBytes, branchedFrom });
    staging.publish(manifest, force);
    return { manifest, dir, ...figures };
  } finally {
    await undo.run();
  }
};
