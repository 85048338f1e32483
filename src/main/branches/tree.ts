/** Which snapshot is made of which, and what runs from each. */
import type { BranchTree, LiveChild, TreeNode, WorkspaceNeed } from '../../contract/branches.js';
import type { SnapshotSummary } from '../../contract/snapshot.js';

export interface Found {
  snapshots: SnapshotSummary[];
  sandboxes: LiveChild[];
  workspaces: WorkspaceNeed[];
}

/** With `top`, only that tag and what is below it. */
export const growTree = ({ snapshots, sandboxes, workspaces }: Found, top?: string): BranchTree => {
  const nodes = new Map(snapshots.map((one) => [one.tag, nodeOf(one, workspaces)]));
  const roots: TreeNode[] = [];
  for (const { tag, parent_tag } of [...snapshots].sort((a, b) => a.tag.localeCompare(b.tag))) {
    const node = nodes.get(tag) as TreeNode;
    const parent = parent_tag === undefined ? undefined : nodes.get(parent_tag);
    // A chain that leads back to itself would hang in the air.
    if (parent && !leadsTo(parent_tag as string, tag, snapshots)) parent.children.push(node);
    else roots.push(node);
  }
  const strays: LiveChild[] = [];
  for (const sandbox of sandboxes) {
    const tag = snapshotOf(sandbox, snapshots);
    const list = tag === undefined ? strays : (nodes.get(tag) as TreeNode).sandboxes;
    list.push({ ...sandbox, ...ownerOf(sandbox.id, workspaces) });
  }
  if (top === undefined) return { roots, strays };
  const node = nodes.get(top);
  return { roots: node ? [node] : [], strays: [] };
};

/** The tag whose memory a sandbox has, by its present name. */
export const snapshotOf = (
  { snapshot_tag: tag, snapshot_root: root }: LiveChild,
  snapshots: SnapshotSummary[],
): string | undefined => {
  const named = snapshots.find((one) => one.tag === tag);
  if (root === undefined || named?.memory_root === root) return named?.tag;
  return snapshots.find((one) => one.memory_root === root)?.tag;
};

const nodeOf = (one: SnapshotSummary, workspaces: WorkspaceNeed[]): TreeNode => ({
  tag: one.tag,
  created_at_unix: one.created_at_unix,
  bytes: one.bytes,
  ...(one.branched_from === undefined ? {} : { branched_from: one.branched_from }),
  ...(one.promoted_from === undefined ? {} : { promoted_from: one.promoted_from }),
  workspaces: workspaces.filter(({ current_state_tag }) => current_state_tag === one.tag).map(({ name }) => name),
  ...(one.problem === undefined ? {} : { problem: one.problem }),
  sandboxes: [],
  children: [],
});

const ownerOf = (id: string, workspaces: WorkspaceNeed[]): { workspace?: string } => {
  const workspace = workspaces.find(({ live_sandbox_id }) => live_sandbox_id === id)?.name;
  return workspace === undefined ? {} : { workspace };
};

const leadsTo = (from: string, tag: string, snapshots: SnapshotSummary[]): boolean => {
  const seen = new Set<string>();
  for (let at: string | undefined = from; at !== undefined && !seen.has(at); ) {
    if (at === tag) return true;
    seen.add(at);
    const name: string = at;
    at = snapshots.find((one) => one.tag === name)?.parent_tag;
  }
  return false;
};
