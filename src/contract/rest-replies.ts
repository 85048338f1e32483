/** JSON Schemas of the daemon's answers, by the names that its OpenAPI document gives them. Tests hold the running server to them. */
import { FILE_EVENTS } from './guest.js';
import { EVENT_KINDS } from './rest.js';

const text = { type: 'string' } as const;
const textOrNull = { type: ['string', 'null'] } as const;
const whole = { type: 'integer', minimum: 0 } as const;
const wholeOrNull = { type: ['integer', 'null'], minimum: 0 } as const;
const yesNo = { type: 'boolean' } as const;
const labels = { type: 'object', additionalProperties: text } as const;

interface ObjectSchema {
  type: 'object';
  required: string[];
  properties: Record<string, object>;
  additionalProperties?: boolean;
}

/** Keys that are always there, and keys that may be. */
const object = (always: Record<string, object>, maybe: Record<string, object> = {}): ObjectSchema => ({
  type: 'object',
  required: Object.keys(always),
  properties: { ...always, ...maybe },
});

const numberOrNull = { type: ['number', 'null'], minimum: 0 } as const;
const liveChild = object(
  {
    id: text,
    snapshot_tag: text,
    pid: wholeOrNull,
    created_at_unix: whole,
    owner: { enum: ['daemon', 'command'] },
  },
  { snapshot_root: text, workspace: text },
);

export const replySchemas = {
  Error: object({ error: text, code: text, hint: text }),
  Health: object({ ok: yesNo }),
  Version: object({ version: text, api: { const: 'v1' } }),
  Sandbox: object({
    id: text,
    snapshot_tag: text,
    netns: textOrNull,
    guest_addr: text,
    network: {
      ...object({
        address: text,
        allow: { type: 'array', items: text },
        allow_domains: { type: 'array', items: text },
        denied: { type: 'array', items: object({ to: text, count: whole }) },
      }),
      type: ['object', 'null'],
    },
    created_at_unix: whole,
    pid: wholeOrNull,
    memory_limit_mib: wholeOrNull,
    limits: object({
      cpus: numberOrNull,
      memory_limit_mib: wholeOrNull,
      io_mib_per_s: numberOrNull,
      pids: wholeOrNull,
    }),
    held: { type: 'array', items: object({ kind: text, what: text, count: whole }) },
    receipt: {
      ...object({
        generation: whole,
        done: { type: 'array', items: text },
        skipped: { type: 'object', additionalProperties: text },
        failed: { type: 'object', additionalProperties: text },
        boot_id: text,
      }),
      type: ['object', 'null'],
    },
    has_branched: yesNo,
    last_branch_memory_path: textOrNull,
    branch_count: whole,
    isolation: { enum: ['tcg', 'kvm'] },
    status: { enum: ['running', 'dead'] },
    reason: textOrNull,
    labels,
    expires_at_unix: wholeOrNull,
    idle_secs: wholeOrNull,
    last_active_unix: whole,
  }),
  Usage: object({
    cpu_ms: wholeOrNull,
    cpu_throttled_periods: wholeOrNull,
    cpu_throttled_ms: wholeOrNull,
    io_read_bytes: wholeOrNull,
    io_written_bytes: wholeOrNull,
    memory_bytes: wholeOrNull,
    memory_refused: wholeOrNull,
    memory_kills: wholeOrNull,
    pids: wholeOrNull,
    pids_refused: wholeOrNull,
  }),
  Snapshot: object(
    { tag: text, dir: text, created_at_unix: whole, status: { enum: ['writing', 'ready', 'failed'] }, bootable: yesNo },
    {
      branched_from: text,
      pause_ms: whole,
      diff_ms: whole,
      diff_physical_bytes: whole,
      diff_logical_bytes: whole,
      warning: text,
      labels,
    },
  ),
  SnapshotDetail: object(
    {
      tag: text,
      dir: text,
      created_at_unix: whole,
      memory_logical_bytes: whole,
      memory_physical_bytes: whole,
      shared_bytes: whole,
      vmstate_bytes: whole,
      working_set_bytes: wholeOrNull,
      memory_root: text,
      chain_depth: whole,
      dependents: { type: 'array', items: text },
      ancestors: { type: 'array', items: text },
    },
    { parent_tag: text, parent_content_hash: text, branched_from: text },
  ),
  Tree: object({
    roots: { type: 'array', items: { $ref: '#/components/schemas/TreeNode' } },
    strays: { type: 'array', items: liveChild },
  }),
  TreeNode: object(
    {
      tag: text,
      created_at_unix: whole,
      bytes: whole,
      workspaces: { type: 'array', items: text },
      sandboxes: { type: 'array', items: liveChild },
      children: { type: 'array', items: { $ref: '#/components/schemas/TreeNode' } },
    },
    { branched_from: text, promoted_from: text, problem: text },
  ),
  Promoted: object({ tag: text, dir: text, promoted_from: text }, { previous: text }),
  Pruned: object({
    dry_run: yesNo,
    removed: { type: 'array', items: object({ tag: text, created_at_unix: whole }) },
    kept: { type: 'array', items: object({ tag: text, reason: text }) },
    freed_bytes: whole,
  }),
  Diff: object(
    { a: text, b: text },
    {
      files: {
        type: 'array',
        items: object({
          path: text,
          change: { enum: ['added', 'removed', 'changed'] },
          type: { enum: ['file', 'dir', 'link', 'other'] },
          what: { type: 'array', items: { enum: ['type', 'content', 'mode', 'owner', 'target'] } },
          size_a: wholeOrNull,
          size_b: wholeOrNull,
        }),
      },
      files_truncated: yesNo,
      processes: {
        type: 'array',
        items: object({ change: { enum: ['added', 'removed'] }, pid: whole, command: text }),
      },
      memory: object({
        image_bytes: whole,
        pages: whole,
        bytes: whole,
        chunks: whole,
        private_bytes_a: whole,
        private_bytes_b: whole,
      }),
    },
  ),
  FileEntry: object(
    {
      name: text,
      type: { enum: ['file', 'dir', 'link', 'other'] },
      size: whole,
      mode: whole,
      uid: whole,
      gid: whole,
      mtime_unix: { type: 'number' },
    },
    { target: text, leads_to: textOrNull },
  ),
  FileEvent: object({ event: { enum: FILE_EVENTS }, path: text, is_dir: yesNo }, { from: text }),
  Moved: object({ size: whole }),
  Unpacked: object({ entries: whole }),
  Run: object({
    run: whole,
    pid: whole,
    args: { type: 'array', items: text },
    tty: yesNo,
    attached: yesNo,
    began_unix: { type: 'number' },
    exit_code: { type: ['integer', 'null'] },
  }),
  RunBegun: object({ run: whole, pid: whole }),
  Exec: object({ stdout: text, stderr: text, exit_code: { type: 'integer' } }, { error: text, timed_out: yesNo }),
  Eval: {
    ...object({ result: textOrNull, error: textOrNull, exit_code: { type: 'integer' } }, { result_json: text }),
    additionalProperties: true,
  },
  Ping: { ...object({ pong: { const: true }, pid: whole, agent_lang: text }), additionalProperties: true },
  Workspace: object(
    {
      id: text,
      name: text,
      source_snapshot_tag: text,
      status: { enum: ['running', 'suspended', 'stale'] },
      created_at_unix: whole,
      last_active_unix: whole,
    },
    {
      current_state_tag: text,
      live_sandbox_id: text,
      last_branch_memory_path: text,
      network: object({ allow: { type: 'array', items: text }, allow_domains: { type: 'array', items: text } }),
      netns: text,
      labels,
    },
  ),
  Event: object(
    { id: whole, at_unix_ms: whole, kind: { enum: EVENT_KINDS }, action: text, object: text },
    {
      sandbox: { $ref: '#/components/schemas/Sandbox' },
      snapshot: { $ref: '#/components/schemas/Snapshot' },
      workspace: { $ref: '#/components/schemas/Workspace' },
    },
  ),
} as const;

export type ReplyName = keyof typeof replySchemas;
