/** Takes back sandboxes of an engine that was killed: their snapshots, networks and work directories with them. */
import { dirname } from 'node:path';
import { reasonOf } from '../contract/errors.js';
import type { SnapshotManifest } from '../contract/snapshot.js';
import { native } from '../native/binding.js';
import { WorkDir } from './host/workdir.js';
import type { Networks } from './network/networks.js';
import type { Pool } from './pool.js';
import type { Publisher } from './sandbox/publisher.js';
import type { Roster } from './sandbox/roster.js';
import type { Sandbox } from './sandbox/sandbox.js';
import { type Claim, type SandboxRecord, type Taken, takeOver } from './sandbox/take-over.js';
import type { Store } from './store/store.js';

export interface TakeBackContext {
  pool: Pool;
  store: Store;
  networks: Networks;
  roster: Roster;
  publisher: Publisher;
  onProblem: (reason: string) => void;
}

/** What came of each is returned. */
export const takeBack = async (claims: Claim[], context: TakeBackContext): Promise<Taken[]> => {
  const { pool, store, networks, roster, publisher, onProblem } = context;
  const taken = await takeOver(claims, {
    pool,
    manifestOf: (record) => manifestOf(store, record),
    networkOf: (record, pidfd) => {
      try {
        return networks.takeBack(record, pidfd);
      } catch (error) {
        onProblem(`the network of a sandbox on ${record.snapshot_tag} cannot be taken back: ${reasonOf(error)}`);
        return undefined;
      }
    },
    onEnd: (sandbox) => {
      sandbox.birth.network?.end();
      roster.forget(sandbox);
    },
  });
  const folders = new Map<string, { sandboxes: Sandbox[]; workDir: WorkDir }>();
  for (const one of taken) {
    if (!('sandbox' in one)) continue;
    const { sandbox, lock } = one;
    const path = dirname(sandbox.birth.consolePath);
    const folder = folders.get(path);
    if (folder) native.fdClose(lock);
    const { sandboxes, workDir } = folder ?? { sandboxes: [], workDir: WorkDir.adopt(path, lock) };
    folders.set(path, { sandboxes: [...sandboxes, sandbox], workDir });
    if (sandbox.state !== 'dead') roster.add(sandbox);
  }
  for (const { sandboxes, workDir } of folders.values()) {
    roster.closeWithLast(sandboxes, () => workDir.close());
    // Their directory may have been cleared away: the daemon itself does without.
    await publisher
      .publish(sandboxes)
      .catch((error: unknown) =>
        onProblem(`other commands cannot reach the sandboxes in ${workDir.path}: ${reasonOf(error)}`),
      );
  }
  return taken;
};

/** A tag that was made again is another snapshot: then its sandboxes cannot be branched any more. */
const manifestOf = (store: Store, { snapshot_tag: tag, snapshot }: SandboxRecord): SnapshotManifest | undefined => {
  try {
    const manifest = store.manifest(tag);
    const { created_at_unix: made, memory_root: root } = manifest;
    return made === snapshot?.created_at_unix && root === snapshot.memory_root ? manifest : undefined;
  } catch {
    return undefined;
  }
};
