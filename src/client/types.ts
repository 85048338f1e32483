/** What the client takes and gives: names of the reference's TypeScript SDK, bodies of `contract/rest.ts`. */
import type { NetworkWish } from '../contract/network.js';
import type { ResourceUsage } from '../contract/resources.js';
import type { EventBody, Labels, SandboxBody, SnapshotBody, WorkspaceBody } from '../contract/rest.js';

export type {
  BranchTree,
  DiffPart,
  DiffReport,
  LiveChild,
  PromoteReport,
  PruneReport,
  TreeNode,
} from '../contract/branches.js';
export type { FileEntry, FileEvent, RunFacts, StreamRequest } from '../contract/guest.js';
export type { SnapshotDetail } from '../contract/snapshot.js';

/** As much of `fetch` as is used, so that any can be given. */
export type FetchLike = (
  url: string,
  init: {
    method: string;
    headers: Record<string, string>;
    // biome-ignore lint/suspicious/noExplicitAny: what a fetch takes as a body differs between libraries
    body?: any;
    duplex?: 'half';
    signal: AbortSignal;
  },
) => Promise<{ status: number; text(): Promise<string>; body?: AsyncIterable<Uint8Array> | null }>;

export interface ControllerOptions {
  /** `http://HOST:PORT`, `https://...` or `unix:PATH` (default `$FORKD_URL`, else `http://127.0.0.1:8889`). */
  baseUrl?: string;
  /** Bearer token (default `$FORKD_TOKEN`). */
  token?: string;
  /** Certificates, PEM, of whom to believe with `https:` (default: the file `$FORKD_CA`, else those that Node has). */
  ca?: string;
  /** For one whole request (default 60,000). An exec waits for as long as it was given. */
  timeoutMs?: number;
  /** Used instead of undici; then `unix:` is not possible. */
  fetch?: FetchLike;
}

export type { Labels } from '../contract/rest.js';
export type EventInfo = EventBody;
export type WorkspaceInfo = WorkspaceBody;
export type SandboxInfo = SandboxBody;
export type SandboxUsage = ResourceUsage;
export type SnapshotInfo = SnapshotBody;
export type BranchMode = 'full' | 'diff' | 'live';

export interface SpawnOptions {
  snapshotTag: string;
  /** 1 to 1000 (default 1). All are made, or none. */
  n?: number;
  perChildNetns?: boolean;
  memoryLimitMib?: number;
  /** Processors' worth of time, 0.5 for half of one; MiB read and written a second; processes and threads of the VM. */
  cpus?: number;
  ioMibPerS?: number;
  pids?: number;
  /** Refuse where the daemon's host cannot enforce the whole jail and every limit. */
  strict?: boolean;
  /** A network of its own for each, from which nothing can be reached but what is named. */
  network?: Partial<NetworkWish>;
  prewarm?: boolean;
  liveFork?: boolean;
  hugepages?: boolean;
  /** A few short texts to find it by. */
  labels?: Labels;
  /** Seconds from birth, and seconds without a call, after which it is ended (default: never). */
  ttlSecs?: number;
  idleSecs?: number;
}

export interface LimitOptions {
  cpus?: number | null;
  memoryLimitMib?: number | null;
  ioMibPerS?: number | null;
  pids?: number | null;
}

export interface CreateSnapshotOptions {
  tag: string;
  /** Paths on the daemon's host (default: the built-in guest image). */
  kernel?: string;
  initrd?: string;
  rootfs?: string;
  /** A network card, for sandboxes with a network. */
  net?: boolean;
  tap?: string;
  /** At most 60. */
  bootWaitSecs?: number;
  memoryMib?: number;
  vcpus?: number;
  /** Python that the warm interpreter runs before it is saved. */
  warmEval?: string;
  /** Disk images on the daemon's host. What a sandbox writes to one stays in it, and goes with its branches. */
  volumes?: { hostPath: string; guestPath: string; readOnly?: boolean }[];
  labels?: Labels;
}

export interface CreateWorkspaceOptions {
  name: string;
  snapshotTag: string;
  perChildNetns?: boolean;
  memoryLimitMib?: number;
  /** A network of its own, also when it is resumed, from which nothing can be reached but what is named. */
  network?: Partial<NetworkWish>;
  labels?: Labels;
}

export interface ListOptions {
  /** Only those that have all of these. */
  labels?: Labels;
}

export interface EventsOptions {
  kinds?: EventInfo['kind'][];
  /** First those after this id that the daemon still has. */
  after?: number;
  /** Ends the stream, without an error. */
  signal?: AbortSignal;
}

export interface BranchOptions {
  /** Name of the new snapshot (default: one is made up). */
  tag?: string;
  mode?: BranchMode;
  /** The same as mode `diff`; a mode wins. */
  diff?: boolean;
  measure_diff?: boolean;
  /** False answers at once, while the snapshot is still being written; mode `live` only. */
  wait?: boolean;
  /** The tag that the sandbox was made of, as a check; mode `diff` only. */
  parentTag?: string;
  labels?: Labels;
}

export interface ExecOptions {
  /** Longest run (default 30). */
  timeoutSecs?: number;
  /** Added to its environment. */
  env?: Record<string, string>;
  cwd?: string;
  /** NAME, UID, NAME:GROUP or UID:GID. */
  user?: string;
  /** What it reads; nothing when absent. */
  stdin?: string;
}

/** A program that is heard while it runs, or is left in the background. */
export interface RunOptions {
  env?: Record<string, string>;
  cwd?: string;
  user?: string;
  /** On a terminal of its own, of this size. */
  tty?: boolean;
  rows?: number;
  cols?: number;
  /** It reads what is written to the stream. */
  stdin?: boolean;
  /** Default: none. */
  timeoutSecs?: number;
}

export interface WriteFileOptions {
  /** Permission bits (default: those of the file that was there, else 0o644). */
  mode?: number;
  /** Directories on the way are made. */
  parents?: boolean;
}

/** Bytes to send: all at once, or as they come. */
export type Bytes = string | Uint8Array | AsyncIterable<Uint8Array>;

export interface ExecResult {
  stdout: string;
  stderr: string;
  /** Negative: ended by that signal. */
  exit_code: number;
  /** What went wrong in the guest, also at the end of `stderr`. */
  error?: string;
  timed_out?: boolean;
}

export interface EvalResult {
  /** `repr` of the value, or null. */
  result: string | null;
  error: string | null;
  exit_code: number;
  /** The value as JSON text, from guests whose language gives it so. */
  result_json?: string;
  /** What the code printed. */
  stdout?: string;
  stderr?: string;
  traceback?: string;
  stack?: string;
}

export interface PingResult {
  pong: boolean;
  pid: number;
  agent_lang: string;
  numpy_version?: string;
  warmup_ready?: boolean;
  [key: string]: unknown;
}

export interface DeleteSnapshotOptions {
  /** What is made of it goes too. */
  cascade?: boolean;
  /** It goes even if something is made of it or uses it. */
  force?: boolean;
}

export interface PruneOptions {
  /** Only what is made of this tag. */
  under?: string;
  /** Bases and promoted tags too (default false). */
  all?: boolean;
  olderThanSecs?: number;
  /** So many of the newest stay. */
  keep?: number;
  /** Of those that these conditions allow, only these. */
  only?: string[];
  /** Only tell (default false). */
  dryRun?: boolean;
}

export interface WatchOptions {
  /** In what is below too (default false). */
  recursive?: boolean;
  /** Ends it. */
  signal?: AbortSignal;
}
