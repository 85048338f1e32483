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

/** What two branches may be compared by. */
export const DIFF_PARTS = ['files', 'processes', 'memory'] as const;
export type DiffPart = (typeof DIFF_PARTS)[number];

/** Added: only B has it. Removed: only A has it. */
export interface FileChange {
  path: string;
  change: 'added' | 'removed' | 'changed';
  /** Of what is in B; of what was in A when it is gone. */
  type: 'file' | 'dir' | 'link' | 'other';
  /** Of what was changed. */
  what: ('type' | 'content' | 'mode' | 'owner' | 'target')[];
  size_a: number | null;
  size_b: number | null;
}

export interface ProcessChange {
  change: 'added' | 'removed';
  pid: number;
  command: string;
}

export interface MemoryDiff {
  image_bytes: number;
  /** Pages of 4 KiB that differ, in how many chunks of 16 KiB. */
  pages: number;
  bytes: number;
  chunks: number;
  /** Of a sandbox that runs: what it has changed since its snapshot. 0 of a tag. */
  private_bytes_a: number;
  private_bytes_b: number;
}

export interface DiffReport {
  a: string;
  b: string;
  /** By path. Absent when it was not asked for, as are the others. */
  files?: FileChange[];
  /** There were more than are told. */
  files_truncated?: boolean;
  processes?: ProcessChange[];
  memory?: MemoryDiff;
}
