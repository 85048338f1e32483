/** What a snapshot is made of: its layers, its image, and what a host must have to restore it. */
import { parseTag } from '../../contract/names.js';
import type { FileDigest, SnapshotManifest } from '../../contract/snapshot.js';
import type { LayerFile } from '../../contract/task.js';
import { native, type SourceInfo } from '../../native/binding.js';
import { MemorySource } from '../memory/source.js';
import { verifyLayers } from '../memory/verify.js';
import type { Store } from './store.js';
import { readWorkingSet } from './working-set.js';

export interface LayerReport {
  tag: string;
  path: string;
  root: string;
  parent_root: string | null;
  file_bytes: number;
  /** Blocks that the file takes. */
  disk_bytes: number;
  /** Chunks of which the layer has pages. */
  chunks: number;
  /** Pages with data, and pages that the layer makes zero. */
  data_pages: number;
  zero_pages: number;
  /** Different frames in the file, and chunks that use the frame of another chunk. */
  unique_frames: number;
  shared_frames: number;
}

export interface Inspection {
  tag: string;
  dir: string;
  /** Base first. */
  layers: LayerReport[];
  image: {
    bytes: number;
    chunk_bytes: number;
    chunks: number;
    /** Chunks that no layer has data for. */
    zero_chunks: number;
    zero_bytes: number;
    /** What a child that touches everything reads, equal frames counted once. */
    stored_bytes: number;
    /** Of the layer files: what only this tag brings, and what it shares with its ancestors. */
    unique_bytes: number;
    shared_bytes: number;
  };
  /** Chunks that the first children touched, recorded to be loaded first; null when nothing is recorded. */
  working_set: { chunks: number; bytes: number } | null;
  compatibility: Pick<
    SnapshotManifest,
    'isolation' | 'vmm' | 'tsc_khz' | 'memory_mib' | 'vcpus' | 'agent_generation'
  > & {
    tap: string | null;
    kernel: FileDigest;
    rootfs: FileDigest;
    volumes: FileDigest[];
  };
}

export interface Verification {
  /** Chunks read, in the images of all links. */
  chunks: number;
  read_bytes: number;
  problems: { tag: string; chunk: number; reason: string }[];
}

/** Throws as Store.hold does. */
export const inspect = (store: Store, tag: string): Inspection => {
  const chain = store.hold(parseTag(tag));
  try {
    const layers = chain.layers.map(describeLayer);
    const source = MemorySource.open(chain.layers);
    const { info } = source;
    source.close();
    const own = layers.at(-1)?.file_bytes ?? 0;
    return {
      tag,
      dir: store.dir(tag),
      layers,
      image: {
        bytes: info.imageBytes,
        chunk_bytes: info.chunkBytes,
        chunks: info.chunks,
        zero_chunks: info.zeroChunks,
        zero_bytes: Math.min(info.zeroChunks * info.chunkBytes, info.imageBytes),
        stored_bytes: info.storedBytes,
        unique_bytes: own,
        shared_bytes: layers.reduce((sum, layer) => sum + layer.file_bytes, -own),
      },
      working_set: workingSet(chain.folder, info),
      compatibility: compatibility(chain.manifest),
    };
  } finally {
    chain.close();
  }
};

const describeLayer = ({ tag, path, fd }: LayerFile): LayerReport => {
  const layer = native.layerOpen(fd);
  return {
    tag,
    path,
    root: layer.root,
    parent_root: layer.parentRoot,
    file_bytes: layer.fileBytes,
    disk_bytes: native.fdSize(fd).allocated,
    chunks: layer.entries,
    data_pages: layer.dataPages,
    zero_pages: layer.zeroPages,
    unique_frames: layer.uniqueFrames,
    shared_frames: layer.sharedFrames,
  };
};

const workingSet = (folder: string, { chunks, chunkBytes }: SourceInfo): Inspection['working_set'] => {
  const found = readWorkingSet(folder, chunks);
  return found ? { chunks: found.length, bytes: found.length * chunkBytes } : null;
};

const compatibility = (m: SnapshotManifest): Inspection['compatibility'] => ({
  isolation: m.isolation,
  vmm: m.vmm,
  tsc_khz: m.tsc_khz,
  memory_mib: m.memory_mib,
  vcpus: m.vcpus,
  agent_generation: m.agent_generation,
  tap: m.tap ?? null,
  kernel: m.kernel,
  rootfs: m.rootfs_digest,
  volumes: m.volume_digests,
});

/** Reads everything and checks it against its hashes. Throws as Store.hold does. */
export const verify = async (store: Store, tag: string): Promise<Verification> => {
  const chain = store.hold(parseTag(tag));
  try {
    const { chunks, readBytes, problems } = await verifyLayers(chain.layers);
    return { chunks, read_bytes: readBytes, problems };
  } finally {
    chain.close();
  }
};
