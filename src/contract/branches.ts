/** The tree of branches, and what may go of it: as `forkd tree` and `forkd prune` print it, and as the daemon tells it. */

/** A sandbox that runs. */
export interface LiveChild {
  id: string;
  snapshot_tag: string;
  /** Root hash of the memory that it comes from, where that is known: the tag may mean another snapshot by now. */
  snapshot_root?: string;
  pid: number | null;
  created_at_unix: number;
  /** Who keeps it: the daemon, or a `forkd fork` that runs. */
  owner: 'daemon' | 'command';
  /** Whose sandbox it is. */
  workspace?: string;
}

export interface TreeNode {
  tag: string;
  created_at_unix: number;
  /** On disk, of this tag alone. */
  bytes: number;
  branched_from?: string;
  promoted_from?: string;
  /** Workspaces whose state it is. */
  workspaces: string[];
  problem?: string;
  sandboxes: LiveChild[];
  children: TreeNode[];
}

export interface BranchTree {
  roots: TreeNode[];
  /** Sandboxes whose snapshot is gone. */
  strays: LiveChild[];
}

/** A workspace, as far as it needs snapshots. */
export interface WorkspaceNeed {
  name: string;
  source_snapshot_tag: string;
  current_state_tag?: string;
  live_sandbox_id?: string;
}

export interface PruneRequest {
  /** Only what is made of this tag. */
  under?: string;
  /** Bases, and tags that were promoted, too; else only branches. */
  all?: boolean;
  older_than_secs?: number;
  /** So many of the newest stay. */
  keep?: number;
  /** Of what these conditions allow, only these: those that a user has seen. */
  only?: string[];
}

export interface PruneReport {
  dry_run: boolean;
  /** In the order in which they go: children first. */
  removed: { tag: string; created_at_unix: number }[];
  kept: { tag: string; reason: string }[];
  freed_bytes: number;
}

/** A snapshot that was made the one a tag means. */
export interface PromoteReport {
  tag: string;
  dir: string;
  promoted_from: string;
  /** What the tag meant before has this name now. */
  previous?: string;
}
