/**
 * A snapshot that stores what a child has changed. Who makes one has the child's tag locked (`Store.lock`), stages it
 * (`Store.stage`), writes STATE_FILE and MEMORY_FILE there and fsyncs them, and publishes this manifest.
 */
import { join } from 'node:path';
import { MEMORY_FILE, type SnapshotManifest, STATE_FILE } from '../../contract/snapshot.js';

export interface Difference {
  tag: string;
  /** The directory that the tag will have. */
  dir: string;
  /** Root of the layer, which was written with the parent's `memory_root` as its parent root. */
  root: string;
  stateBytes: number;
  /** Id of the sandbox whose memory it is. */
  branchedFrom?: string;
}

/** The guest's hardware and disks are its parent's: it goes on running, it is not booted. */
export const makeDiffManifest = (parent: SnapshotManifest, difference: Difference): SnapshotManifest => {
  const { branched_from: _, promoted_from: __, ...inherited } = parent;
  const { tag, dir, root, stateBytes, branchedFrom } = difference;
  return {
    ...inherited,
    tag,
    vmstate: join(dir, STATE_FILE),
    memory: join(dir, MEMORY_FILE),
    parent_tag: parent.tag,
    parent_content_hash: parent.memory_root,
    memory_root: root,
    vmstate_bytes: stateBytes,
    created_at_unix: Math.floor(Date.now() / 1000),
    ...(branchedFrom === undefined ? {} : { branched_from: branchedFrom }),
  };
};
