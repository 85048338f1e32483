/** Bodies of the daemon's REST API: the JSON Schemas that requests are checked by, and the types of both sides. */
import type { ForkReceipt, StreamReply } from './guest.js';
import type { Held } from './held.js';
import { limits } from './limits.js';
import type { NetworkInfo } from './network.js';
import type { LimitsBody } from './resources.js';
import type { Isolation } from './snapshot.js';

export interface ErrorBody {
  error: string;
  code: string;
  hint: string;
}

/** The reference's keys, always present; then ours. */
export interface SandboxBody {
  id: string;
  snapshot_tag: string;
  netns: string | null;
  /** Where the agent's line protocol is spoken: `ADDRESS:8888` of its own network, else `unix:PATH`. Opaque to clients. */
  guest_addr: string;
  /** Its own, with what it may reach and what it was not let reach; null when it has none. */
  network: NetworkInfo | null;
  created_at_unix: number;
  pid: number | null;
  memory_limit_mib: number | null;
  limits: LimitsBody;
  /** What it did to its connection and its console that no guest does, and limits that it met. */
  held: Held[];
  /** What it has replaced to be a machine of its own; null for one that ended before. */
  receipt: ForkReceipt | null;
  has_branched: boolean;
  last_branch_memory_path: string | null;
  branch_count: number;
  isolation: Isolation;
  status: 'running' | 'dead';
  /** Why it is dead; null while it runs. */
  reason: string | null;
  labels: Labels;
  /** When it is ended, whatever it does; null for never. */
  expires_at_unix: number | null;
  /** Seconds without a call after which it is ended; null for never. */
  idle_secs: number | null;
  /** End of its last call, or its birth. */
  last_active_unix: number;
}

export type Labels = Record<string, string>;

export interface SnapshotBody {
  tag: string;
  dir: string;
  created_at_unix: number;
  status: 'writing' | 'ready' | 'failed';
  bootable: boolean;
  branched_from?: string;
  pause_ms?: number;
  diff_ms?: number;
  diff_physical_bytes?: number;
  diff_logical_bytes?: number;
  warning?: string;
  labels?: Labels;
}

export interface WorkspaceBody {
  id: string;
  name: string;
  source_snapshot_tag: string;
  status: 'running' | 'suspended' | 'stale';
  created_at_unix: number;
  last_active_unix: number;
  current_state_tag?: string;
  live_sandbox_id?: string;
  last_branch_memory_path?: string;
  /** What it may reach, when it has a network. */
  network?: NetworkBody;
  /** The name of its namespace, when it has one with a name. */
  netns?: string;
  labels?: Labels;
}

/** What events are about. */
export const EVENT_KINDS = ['sandbox', 'snapshot', 'workspace'] as const;

/** One message of `GET /v1/events`. */
export interface EventBody {
  /** Counts up from 1 in one run of the daemon. */
  id: number;
  at_unix_ms: number;
  kind: (typeof EVENT_KINDS)[number];
  action: 'created' | 'died' | 'deleted' | 'writing' | 'ready' | 'failed' | 'suspended' | 'resumed' | 'stale';
  /** Id, tag or name. */
  object: string;
  sandbox?: SandboxBody;
  snapshot?: SnapshotBody;
  workspace?: WorkspaceBody;
}

export interface SpawnBody {
  snapshot_tag: string;
  n: number;
  per_child_netns: boolean;
  memory_limit_mib?: number | null;
  cpus?: number | null;
  io_mib_per_s?: number | null;
  pids?: number | null;
  strict: boolean;
  /** A network of its own for each, from which nothing can be reached but what is in here. */
  network?: NetworkBody | null;
  prewarm: boolean;
  live_fork: boolean;
  hugepages: boolean;
  labels?: Labels;
  ttl_secs?: number | null;
  idle_secs?: number | null;
}

export interface CreateSnapshotBody {
  tag: string;
  kernel?: string | null;
  initrd?: string | null;
  rootfs?: string | null;
  rw: boolean;
  /** A network card, for sandboxes with a network. */
  net: boolean;
  tap?: string | null;
  boot_wait_secs: number;
  memory_mib?: number | null;
  vcpus?: number | null;
  warm_eval?: string | null;
  /** Disk images of this host; what a sandbox writes to one stays in it. */
  volumes?: { host_path: string; guest_path: string; read_only?: boolean }[] | null;
  labels?: Labels;
}

export interface CreateWorkspaceBody {
  name: string;
  snapshot_tag: string;
  per_child_netns: boolean;
  memory_limit_mib?: number | null;
  /** A network of its own, also when it is resumed. */
  network?: NetworkBody | null;
  labels?: Labels;
}

/** What may be reached. */
export interface NetworkBody {
  allow: string[];
  allow_domains: string[];
}

export interface SuspendBody {
  diff: boolean;
}

export interface LabelQuery {
  /** `KEY=VALUE`, once or several times: all must hold. */
  label?: string | string[];
}

export interface EventQuery {
  /** Kinds, with commas between them. */
  kinds?: string;
  /** Those after this id. */
  after?: string;
}

export interface ExecBody {
  args: string[];
  timeout_secs: number;
  env?: Record<string, string> | null;
  cwd?: string | null;
  /** NAME, UID, NAME:GROUP or UID:GID. */
  user?: string | null;
  stdin?: string | null;
}

/** A program in the background. */
export interface RunBody {
  args: string[];
  env?: Record<string, string> | null;
  cwd?: string | null;
  user?: string | null;
  tty: boolean;
  /** It can be given input by whoever attaches. */
  stdin: boolean;
  timeout_secs?: number | null;
}

export interface EvalBody {
  code: string;
}

export interface BranchBody {
  tag?: string | null;
  mode?: 'full' | 'diff' | 'live' | null;
  diff: boolean;
  live: boolean;
  measure_diff: boolean;
  wait: boolean;
  parent_tag?: string | null;
  labels?: Labels;
}

/**
 * Text messages of the WebSocket `GET /v1/sandboxes/ID/stream`. The first of the client is a `StreamRequest` (contract/guest.ts).
 * Binary messages are a byte for the channel and then data: 0 to the guest; 1, and 2 for stderr, from it.
 */
export type StreamCommand = { end: true } | { signal: string | number } | { rows: number; cols: number };

export type StreamNews =
  | { opened: Record<string, unknown> }
  | { end: number }
  | { ended: StreamReply }
  | { error: ErrorBody };

export interface FileQuery {
  /** Absolute. */
  path: string;
}

/** `mode`: octal digits. */
export type MakeDirQuery = FileQuery & { mode?: string; parents?: 'true' | 'false' };
export type PutFileQuery = MakeDirQuery;
export type RemoveFileQuery = FileQuery & { recursive?: 'true' | 'false' };

export type WatchQuery = RemoveFileQuery;

export interface RemoveQuery {
  cascade?: 'true' | 'false';
  force?: 'true' | 'false';
}

const no = { type: 'boolean', default: false } as const;
const text = { type: 'string' } as const;
const textOrNull = { type: ['string', 'null'] } as const;
const unsigned = { type: 'integer', minimum: 0, maximum: Number.MAX_SAFE_INTEGER } as const;

const textsOrNull = { type: ['object', 'null'], additionalProperties: text } as const;

const unsignedOrNull = { ...unsigned, type: ['integer', 'null'] } as const;
const amountOrNull = { type: ['number', 'null'], exclusiveMinimum: 0 } as const;
const lifetime = { type: ['integer', 'null'], minimum: 1, maximum: limits.lifetimeMaxSecs } as const;

/** A few short texts. Their keys go into a query, so they have no `=` and no blanks. */
export const labelsSchema = {
  type: 'object',
  maxProperties: limits.labelsMax,
  propertyNames: { pattern: '^[A-Za-z0-9._/-]{1,63}$' },
  additionalProperties: { type: 'string', maxLength: limits.labelMaxChars },
} as const;

const rules = {
  type: 'array',
  items: { type: 'string', maxLength: 300 },
  maxItems: limits.networkRulesMax,
  default: [],
} as const;
/** What `--net`, `--allow` and `--allow-domain` are on the command line. */
const networkSchema = {
  type: ['object', 'null'],
  properties: { allow: rules, allow_domains: rules },
} as const;

export const spawnSchema = {
  type: 'object',
  required: ['snapshot_tag'],
  properties: {
    snapshot_tag: text,
    n: { ...unsigned, default: 1 },
    per_child_netns: no,
    memory_limit_mib: unsignedOrNull,
    cpus: amountOrNull,
    io_mib_per_s: amountOrNull,
    pids: unsignedOrNull,
    strict: no,
    network: networkSchema,
    prewarm: no,
    live_fork: no,
    hugepages: no,
    labels: labelsSchema,
    ttl_secs: lifetime,
    idle_secs: lifetime,
  },
} as const;

/** A change of what it may use: null lifts a limit, what is absent stays. */
export type LimitBody = Partial<LimitsBody>;

export const limitSchema = {
  type: 'object',
  minProperties: 1,
  additionalProperties: false,
  properties: {
    cpus: amountOrNull,
    memory_limit_mib: unsignedOrNull,
    io_mib_per_s: amountOrNull,
    pids: unsignedOrNull,
  },
} as const;

export const createSnapshotSchema = {
  type: 'object',
  required: ['tag'],
  properties: {
    tag: text,
    kernel: textOrNull,
    initrd: textOrNull,
    rootfs: textOrNull,
    rw: no,
    net: no,
    tap: textOrNull,
    boot_wait_secs: { ...unsigned, default: 10 },
    memory_mib: unsignedOrNull,
    vcpus: unsignedOrNull,
    warm_eval: textOrNull,
    volumes: {
      type: ['array', 'null'],
      items: {
        type: 'object',
        required: ['host_path', 'guest_path'],
        properties: { host_path: { type: 'string', pattern: '^/' }, guest_path: text, read_only: no },
      },
    },
    labels: labelsSchema,
  },
} as const;

export const createWorkspaceSchema = {
  type: 'object',
  required: ['name', 'snapshot_tag'],
  properties: {
    name: text,
    snapshot_tag: text,
    per_child_netns: no,
    memory_limit_mib: unsignedOrNull,
    network: networkSchema,
    labels: labelsSchema,
  },
} as const;

export const suspendSchema = { type: 'object', properties: { diff: no } } as const;

export const labelQuerySchema = {
  type: 'object',
  properties: { label: { type: ['string', 'array'], items: text } },
} as const;

export const eventQuerySchema = {
  type: 'object',
  properties: {
    kinds: { type: 'string', pattern: '^(sandbox|snapshot|workspace)(,(sandbox|snapshot|workspace))*$' },
    after: { type: 'string', pattern: '^[0-9]{1,15}$' },
  },
} as const;

export const execSchema = {
  type: 'object',
  required: ['args'],
  properties: {
    args: { type: 'array', items: text },
    timeout_secs: { ...unsigned, default: 30 },
    env: textsOrNull,
    cwd: textOrNull,
    user: textOrNull,
    stdin: textOrNull,
  },
} as const;

export const runSchema = {
  type: 'object',
  required: ['args'],
  properties: {
    args: { type: 'array', items: text, minItems: 1 },
    env: textsOrNull,
    cwd: textOrNull,
    user: textOrNull,
    tty: no,
    stdin: no,
    timeout_secs: unsignedOrNull,
  },
} as const;

const path = { type: 'string', pattern: '^/' } as const;
const mode = { type: 'string', pattern: '^[0-7]{1,4}$' } as const;

export const fileQuerySchema = { type: 'object', required: ['path'], properties: { path } } as const;

export const evalSchema = {
  type: 'object',
  required: ['code'],
  properties: { code: text },
} as const;

export const branchSchema = {
  type: 'object',
  properties: {
    tag: textOrNull,
    mode: { type: ['string', 'null'], enum: ['full', 'diff', 'live', null] },
    diff: no,
    live: no,
    measure_diff: no,
    wait: { type: 'boolean', default: true },
    parent_tag: textOrNull,
    labels: labelsSchema,
  },
} as const;

export interface CompactBody {
  to: string;
}

export const compactSchema = {
  type: 'object',
  required: ['to'],
  properties: { to: text },
} as const;

export interface PromoteBody {
  as: string;
}

export const promoteSchema = {
  type: 'object',
  required: ['as'],
  properties: { as: text },
} as const;

export interface DiffQuery {
  /** Tags, or ids of sandboxes. */
  a: string;
  b: string;
  /** With commas between them; all when absent. */
  parts?: string;
}

export const diffQuerySchema = {
  type: 'object',
  required: ['a', 'b'],
  properties: {
    a: text,
    b: text,
    parts: { type: 'string', pattern: '^(files|processes|memory)(,(files|processes|memory))*$' },
  },
} as const;

export interface PruneBody {
  dry_run: boolean;
  all: boolean;
  under?: string | null;
  older_than_secs?: number | null;
  keep?: number | null;
  only?: string[] | null;
}

export const pruneSchema = {
  type: 'object',
  properties: {
    dry_run: no,
    all: no,
    under: textOrNull,
    older_than_secs: unsignedOrNull,
    keep: unsignedOrNull,
    only: { type: ['array', 'null'], items: text },
  },
} as const;

const switchText = { type: 'string', enum: ['true', 'false'] } as const;

export const makeDirQuerySchema = {
  type: 'object',
  required: ['path'],
  properties: { path, mode, parents: switchText },
} as const;

export const putFileQuerySchema = makeDirQuerySchema;

export const removeFileQuerySchema = {
  type: 'object',
  required: ['path'],
  properties: { path, recursive: switchText },
} as const;

export const watchQuerySchema = removeFileQuerySchema;

export const removeSchema = {
  type: 'object',
  properties: { cascade: switchText, force: switchText },
} as const;
