/** One base that equals a chain: a tag of its own, which needs no other. */
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { parseTag } from '../../contract/names.js';
import { MEMORY_FILE, type SnapshotManifest, STATE_FILE } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import type { Pool } from '../pool.js';
import { Undo } from '../undo.js';
import type { OpenChain } from './open-chain.js';
import type { Store } from './store.js';

export interface CompactRequest {
  from: string;
  to: string;
}

export interface Compacted {
  manifest: SnapshotManifest;
  dir: string;
  /** Links of the chain that it came from. */
  links: number;
  memory_file_bytes: number;
}

/**
 * Throws SNAPSHOT_NOT_FOUND and what else opening the chain throws, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, SNAPSHOT_CORRUPT, DISK_FULL;
 * then there is nothing of `to`.
 */
export const compact = async (
  store: Store,
  { from, to }: CompactRequest,
  pool: Pool,
  signal?: AbortSignal,
): Promise<Compacted> => {
  const tag = parseTag(to);
  const undo = new Undo();
  try {
    const chain = store.hold(parseTag(from));
    undo.push(() => chain.close());
    const lock = store.lock(tag);
    undo.push(() => lock.release());
    if (store.exists(tag)) throw new ForkdError('SNAPSHOT_EXISTS', { tag });
    store.requireSpace(bytesOf(chain));
    const staging = store.stage(tag);
    undo.push(() => staging.discard());

    const { root, fileBytes } = await pool.run('compact', {
      layers: chain.layers,
      memoryPath: staging.file(MEMORY_FILE),
      stateFd: chain.stateFd,
      statePath: staging.file(STATE_FILE),
    });
    signal?.throwIfAborted();
    const manifest = asBase(chain.manifest, tag, store.dir(tag), root);
    staging.publish(manifest, false);
    return { manifest, dir: store.dir(tag), links: chain.layers.length - 1, memory_file_bytes: fileBytes };
  } catch (error) {
    throw signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await undo.run();
  }
};

/** At most: pages that a newer layer owns are left out. */
const bytesOf = ({ layers, stateFd }: OpenChain): number =>
  [...layers.map(({ fd }) => fd), stateFd].reduce((sum, fd) => sum + native.fdSize(fd).bytes, 0);

const asBase = (head: SnapshotManifest, tag: string, dir: string, root: string): SnapshotManifest => {
  const { parent_tag: _, parent_content_hash: __, promoted_from: ___, ...kept } = head;
  return {
    ...kept,
    tag,
    vmstate: join(dir, STATE_FILE),
    memory: join(dir, MEMORY_FILE),
    memory_root: root,
    branched_from: `compact:${head.tag}`,
    created_at_unix: Math.floor(Date.now() / 1000),
  };
};
