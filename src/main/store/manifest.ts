/** Reads and writes snapshot.json. A reader trusts nothing in it: each key is checked before it is used. */
import { closeSync, fstatSync, openSync, writeSync } from 'node:fs';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { isTag } from '../../contract/names.js';
import { SERIAL_PORTS, SERIAL_PORTS_BEFORE, SNAPSHOT_FORMAT, type SnapshotManifest } from '../../contract/snapshot.js';
import { MiB } from '../../contract/units.js';
import { native } from '../../native/binding.js';

type Check = (value: unknown) => boolean;

/** No system call takes a path with a NUL. */
const string: Check = (v) => typeof v === 'string' && v.length > 0 && !v.includes('\0');
const tagName: Check = (v) => typeof v === 'string' && isTag(v);
const hash: Check = (v) => typeof v === 'string' && /^[0-9a-f]{64}$/.test(v);
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
    Array.isArray(v) && v.length <= limits.volumesMax && v.every(check);

const digest = object({ path: string, blake3: string, bytes: count, mtime_ms: (v) => typeof v === 'number' });

const SHAPE: Record<keyof SnapshotManifest, Check> = {
  // First: the other keys mean something only in this format.
  format: (v) => v === SNAPSHOT_FORMAT,
  vmstate: string,
  memory: string,
  volumes: list(object({ host_path: string, guest_path: string, read_only: (v) => typeof v === 'boolean' })),
  rootfs: string,
  parent_tag: optional(tagName),
  parent_content_hash: optional(hash),
  tag: string,
  created_at_unix: count,
  isolation: (v) => v === 'kvm' || v === 'tcg',
  vmm: object({
    name: (v) => v === 'qemu',
    version: string,
    machine: string,
    cpu_model: string,
    serial_ports: optional((v) => count(v) && (v as number) >= SERIAL_PORTS && (v as number) <= SERIAL_PORTS_BEFORE),
  }),
  memory_mib: (v) => count(v) && (v as number) >= limits.memoryMinMib && (v as number) <= limits.memoryMaxMib,
  tsc_khz: count,
  vcpus: (v) => count(v) && (v as number) <= limits.vcpusMax,
  kernel: digest,
  initrd: digest,
  rootfs_digest: digest,
  volume_digests: list(digest),
  agent_generation: count,
  tap: optional(string),
  network_card: optional((v) => v === true),
  branched_from: optional(string),
  promoted_from: optional(string),
  memory_root: hash,
  memory_bytes: count,
  vmstate_bytes: count,
};

const firstWrong = (value: unknown, shape: Record<string, Check>): string | undefined => {
  if (typeof value !== 'object' || value === null) return '(root)';
  return Object.entries(shape).find(([key, check]) => !check((value as Record<string, unknown>)[key]))?.[0];
};

/** From an open snapshot.json; `path` is for errors. Throws SNAPSHOT_CORRUPT naming file and key, SNAPSHOT_INCOMPATIBLE. */
export const readManifest = (tag: string, path: string, fd: number): SnapshotManifest => {
  let value: unknown;
  try {
    const { size } = fstatSync(fd);
    if (size > limits.snapshotJsonMaxBytes) throw new Error(`${size} bytes is too large`);
    const text = Buffer.alloc(size);
    value = JSON.parse(text.toString('utf8', 0, native.fdRead(fd, text, 0)));
  } catch (error) {
    throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `${path}: ${reasonOf(error)}` }, error);
  }
  const wrong = firstWrong(value, SHAPE) ?? contradiction(value as SnapshotManifest);
  if (wrong === 'format') {
    throw new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag, reason: foreign((value as { format?: unknown }).format) });
  }
  if (wrong !== undefined) {
    throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `${path}: key '${wrong}' is missing or wrong` });
  }
  return value as SnapshotManifest;
};

/** A key that is right in itself but not beside the others. */
const contradiction = (m: SnapshotManifest): string | undefined => {
  if ((m.parent_tag === undefined) !== (m.parent_content_hash === undefined)) {
    return m.parent_tag === undefined ? 'parent_tag' : 'parent_content_hash';
  }
  if (m.memory_bytes !== m.memory_mib * MiB) return 'memory_bytes';
  return m.volume_digests.length === m.volumes.length ? undefined : 'volume_digests';
};

const foreign = (format: unknown): string => {
  if (typeof format !== 'number') return 'it was made by another engine';
  return format < SNAPSHOT_FORMAT
    ? 'it was made by an older version of forkd; make it again with --force'
    : 'it was made by a newer version of forkd';
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
