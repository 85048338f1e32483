import { SNAPSHOT_FORMAT, type SnapshotManifest } from '../../src/contract/snapshot.js';

const file = (path: string) => ({ path, blake3: '0'.repeat(64), bytes: 1, mtime_ms: 1 });

/** A manifest that is right in every key, for code that is asked before any file is. */
export const manifest = (change: Partial<SnapshotManifest> = {}): SnapshotManifest => ({
  vmstate: '/nowhere/vmstate',
  memory: '/nowhere/memory.layer',
  volumes: [],
  rootfs: '/nowhere/rootfs.ext4',
  format: SNAPSHOT_FORMAT,
  tag: 'base',
  created_at_unix: 1_700_000_000,
  isolation: 'tcg',
  vmm: { name: 'qemu', version: '7.2.22', machine: 'microvm', cpu_model: 'max' },
  tsc_khz: 2_600_000,
  memory_mib: 512,
  vcpus: 1,
  kernel: file('/nowhere/vmlinuz'),
  initrd: file('/nowhere/initrd'),
  rootfs_digest: file('/nowhere/rootfs.ext4'),
  volume_digests: [],
  agent_generation: 1,
  memory_root: 'ab'.repeat(32),
  memory_bytes: 512 * 2 ** 20,
  vmstate_bytes: 1000,
  ...change,
});
