/** What `tree` and `prune` look at: the snapshots of this user, and who uses them, the daemon's sandboxes and workspaces too. */
import type { LiveChild, WorkspaceNeed } from '../contract/branches.js';
import { mergeChildren, publishedChildren } from '../main/branches/live.js';
import type { Found } from '../main/branches/tree.js';
import { peek } from '../main/daemon/journal.js';
import { snapshotsDir, statePath } from '../main/paths.js';
import { Store } from '../main/store/store.js';
import { askDaemon, nearDaemonUrl, notThere } from './ask-daemon.js';
import type { Options } from './options.js';

/** Throws what asking the daemon throws, but for one that is not there: then its state on disk says what its workspaces need. */
export const branchesHere = async (options: Options): Promise<Found> => {
  const daemon = await ofDaemon(options);
  const { sandboxes, workspaces } = daemon ?? {
    sandboxes: [],
    workspaces: peek<WorkspaceNeed>(statePath(), 'workspaces'),
  };
  const snapshots = new Store(snapshotsDir()).list();
  return { snapshots, sandboxes: mergeChildren(publishedChildren(), sandboxes), workspaces };
};

const ofDaemon = async (
  options: Options,
): Promise<{ sandboxes: LiveChild[]; workspaces: WorkspaceNeed[] } | undefined> => {
  if (nearDaemonUrl(options) === undefined) return undefined;
  try {
    return await askDaemon(
      options,
      async (controller) => ({
        sandboxes: (await controller.listSandboxes())
          .filter(({ status }) => status === 'running')
          .map(({ id, snapshot_tag, pid, created_at_unix }) => ({
            id,
            snapshot_tag,
            pid,
            created_at_unix,
            owner: 'daemon' as const,
          })),
        workspaces: await controller.listWorkspaces(),
      }),
      10_000,
    );
  } catch (error) {
    if (notThere(error)) return undefined;
    throw error;
  }
};
