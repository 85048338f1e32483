/**
 * What `snapshot.json` says. Keys of the reference come first; a reader ignores keys it does not know and never
 * invents the ones that are absent: a directory without `vmm` is not one that this engine can restore.
 */
export const SNAPSHOT_FORMAT = 1;

/** How a VM is held apart from the host: hardware virtualisation, or QEMU's emulation. */
export type Isolation = 'kvm' | 'tcg';

export interface Volume {
  host_path: string;
  guest_path: string;
  read_only: boolean;
}

export interface FileDigest {
  path: string;
  sha256: string;
  bytes: number;
  /** When it was hashed it had this mtime: unchanged size and mtime spare a second hash. */
  mtime_ms: number;
}

export interface SnapshotManifest {
  vmstate: string;
  memory: string;
  volumes: Volume[];
  rootfs: string;
  parent_tag?: string;
  parent_content_hash?: string;

  format: typeof SNAPSHOT_FORMAT;
  tag: string;
  created_at_unix: number;
  isolation: Isolation;
  vmm: {
    name: 'qemu';
    /** As QEMU prints it, e.g. `7.2.22`. Device state is tied to the machine type, which is tied to the version. */
    version: string;
    machine: string;
    cpu_model: string;
  };
  /** Speed of the time stamp counter that the guest was told, kHz. Emulated guests read the host's counter. */
  tsc_khz: number;
  memory_mib: number;
  vcpus: number;
  kernel: FileDigest;
  initrd: FileDigest;
  rootfs_digest: FileDigest;
  /** One for each of `volumes`. */
  volume_digests: FileDigest[];
  /** Generation of the agent that is inside the memory image. */
  agent_generation: number;
  /** Host interface of the guest's network card, when it has one. */
  tap?: string;
  /** Sizes that a restore checks before it maps anything. */
  memory_bytes: number;
  vmstate_bytes: number;
}

/** A snapshot as listings show it. */
export interface SnapshotSummary {
  tag: string;
  dir: string;
  /** Bytes on disk of everything in the directory. */
  bytes: number;
  memory_bytes: number;
  created_at_unix: number;
  rootfs: boolean;
  isolation?: Isolation;
  /** Set when the directory is not a usable snapshot, with the reason. */
  problem?: string;
}
