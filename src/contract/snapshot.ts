/**
 * What `snapshot.json` says. Keys of the reference come first; a reader ignores keys it does not know and never
 * invents the ones that are absent: a directory without `vmm` is not one that this engine can restore.
 */
export const SNAPSHOT_FORMAT = 3;

/** The files of a snapshot directory. */
export const MANIFEST_FILE = 'snapshot.json';
export const STATE_FILE = 'vmstate';
export const MEMORY_FILE = 'memory.layer';
/** Numbers of the chunks that the first children touched, in their order: unsigned, 32 bits, little endian. Not always there. */
export const WORKING_SET_FILE = 'working-set';

/** There only while a tag that was pulled with --lazy is not whole: where its pack is, and what of it is here. */
export const REMOTE_FILE = 'remote.json';
export const ARRIVED_FILE = 'arrived';
export const BLOCKS_FILE = 'disk.blocks';

/** Raw: a chunk is faulted in from the page cache sooner than it could be decompressed, and equal and zero pages are left out anyway. */
export const LAYER_ZSTD_LEVEL = 0;

/** Ports of the serial bus of a guest that is booted now. The first is reserved for a console, the second is the agent's. Each has two queues, and at every interrupt the guest looks into all. */
export const SERIAL_PORTS = 2;
/** Of a snapshot that does not tell. */
export const SERIAL_PORTS_BEFORE = 31;

/** How a VM is held apart from the host: hardware virtualisation, or QEMU's emulation. */
export type Isolation = 'kvm' | 'tcg';

export interface Volume {
  host_path: string;
  guest_path: string;
  read_only: boolean;
}

export interface FileDigest {
  path: string;
  /** Of all of it, as b3sum(1) prints it. */
  blake3: string;
  bytes: number;
  /** When it was hashed it had this mtime: unchanged size and mtime spare a second hash. */
  mtime_ms: number;
}

export interface SnapshotManifest {
  vmstate: string;
  memory: string;
  volumes: Volume[];
  rootfs: string;
  /** The snapshot that this one's memory is a difference to; a base has none. */
  parent_tag?: string;
  /** `memory_root` of the parent when the difference was made: another parent of that name is refused. */
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
    /** Of the bus that the agent's port is on; 31, which is QEMU's own, when absent. */
    serial_ports?: number;
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
  /** The guest has a network card, which each child's own network is put behind. */
  network_card?: true;
  /** It has one, and a child that is given no network of its own is put behind this interface of the host. */
  tap?: string;
  /** Where it came from when it was not booted: the id of a sandbox, or `compact:<tag>`. */
  branched_from?: string;
  /** The tag or the sandbox that this tag was made to mean by `promote`. */
  promoted_from?: string;
  /** Root hash of the layer in `memory`, hex: it covers every page, and by the parent's root the whole chain. */
  memory_root: string;
  /** Sizes that a restore checks before it maps anything: guest RAM, and the file of device state. */
  memory_bytes: number;
  vmstate_bytes: number;
}

export const hasCard = ({ network_card, tap }: Pick<SnapshotManifest, 'network_card' | 'tap'>): boolean =>
  network_card === true || tap !== undefined;

/** A snapshot as listings show it. */
export interface SnapshotSummary {
  tag: string;
  dir: string;
  /** Bytes on disk of everything in the directory: what no other tag brings. */
  bytes: number;
  /** Bytes on disk of the memory of its ancestors, which it needs as well and shares with them. */
  shared_bytes: number;
  /** Guest RAM. */
  memory_bytes: number;
  /** Links to its base; 0 is a base. */
  chain_depth: number;
  parent_tag?: string;
  created_at_unix: number;
  rootfs: boolean;
  isolation?: Isolation;
  branched_from?: string;
  promoted_from?: string;
  memory_root?: string;
  /** Set when the directory is not a usable snapshot, with the reason. */
  problem?: string;
}

/** What `snapshot-info` and GET /v1/snapshots/:tag/info tell. */
export interface SnapshotDetail {
  tag: string;
  dir: string;
  created_at_unix: number;
  /** Guest RAM, and what of it the tag itself has on disk. */
  memory_logical_bytes: number;
  memory_physical_bytes: number;
  /** On disk too, in its ancestors. */
  shared_bytes: number;
  vmstate_bytes: number;
  /** What its first children touched, recorded to be loaded first; null when nothing is recorded. */
  working_set_bytes: number | null;
  memory_root: string;
  parent_tag?: string;
  parent_content_hash?: string;
  branched_from?: string;
  chain_depth: number;
  /** Its children, by name. */
  dependents: string[];
  /** Base first, without the tag itself. */
  ancestors: string[];
}
