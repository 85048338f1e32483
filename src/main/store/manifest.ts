/** Reads and writes snapshot.json. A reader trusts nothing in it: each key is checked before it is used. */
import { closeSync, openSync, readFileSync, statSync, writeSync } from 'node:fs';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { SNAPSHOT_FORMAT, type SnapshotManifest } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';

export const MANIFEST_FILE = 'snapshot.json';

type Check = (value: unknown) => boolean;

const string: Check = (v) => typeof v === 'string' && v.length > 0;
const count: Check = (v) => Number.isSafeInteger(v) && (v as number) > 0;
const optional =
  (check: Check): Check =>
  (v) =>
    v === undefined || check(v);
const object =
  (shape: Record<string, Check>): Check =>
  (v) =>
    firstWrong(v, shape) === undefined;
const list =
  (check: Check): Check =>
  (v) =>
    Array.isArray(v) && v.every(check);

const digest = object({ path: string, sha256: string, bytes: count, mtime_ms: (v) => typeof v === 'number' });

const SHAPE: Record<keyof SnapshotManifest, Check> = {
  // First: the other keys mean something only in this format.
  format: (v) => v === SNAPSHOT_FORMAT,
  vmstate: string,
  memory: string,
  volumes: list(object({ host_path: string, guest_path: string, read_only: (v) => typeof v === 'boolean' })),
  rootfs: string,
  parent_tag: optional(string),
  parent_content_hash: optional(string),
  tag: string,
  created_at_unix: count,
  isolation: (v) => v === 'kvm' || v === 'tcg',
  vmm: object({ name: (v) => v === 'qemu', version: string, machine: string, cpu_model: string }),
  memory_mib: (v) => count(v) && (v as number) >= limits.memoryMinMib && (v as number) <= limits.memoryMaxMib,
  tsc_khz: count,
  vcpus: (v) => count(v) && (v as number) <= limits.vcpusMax,
  kernel: digest,
  initrd: digest,
  rootfs_digest: digest,
  volume_digests: list(digest),
  agent_generation: count,
  tap: optional(string),
  memory_bytes: count,
  vmstate_bytes: count,
};

const firstWrong = (value: unknown, shape: Record<string, Check>): string | undefined => {
  if (typeof value !== 'object' || value === null) return '(root)';
  return Object.entries(shape).find(([key, check]) => !check((value as Record<string, unknown>)[key]))?.[0];
};

/** Throws SNAPSHOT_CORRUPT naming the file and the key. */
export const readManifest = (tag: string, path: string): SnapshotManifest => {
  let value: unknown;
  try {
    const { size } = statSync(path);
    if (size > limits.snapshotJsonMaxBytes) throw new Error(`${size} bytes is too large`);
    value = JSON.parse(readFileSync(path, 'utf8'));
  } catch (error) {
    throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `${path}: ${reasonOf(error)}` }, error);
  }
  const wrong = firstWrong(value, SHAPE);
  if (wrong !== undefined) {
    const foreign = wrong === 'format';
    const reason = foreign ? 'it was made by another engine or version' : `${path}: key '${wrong}' is missing or wrong`;
    throw new ForkdError(foreign ? 'SNAPSHOT_INCOMPATIBLE' : 'SNAPSHOT_CORRUPT', { tag, reason });
  }
  return value as SnapshotManifest;
};

export const writeManifest = (path: string, manifest: SnapshotManifest): void => {
  const fd = openSync(path, 'wx', 0o644);
  try {
    writeSync(fd, `${JSON.stringify(manifest, null, 2)}\n`);
    native.fdSync(fd);
  } finally {
    closeSync(fd);
  }
};
