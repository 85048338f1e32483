/** A snapshot that is ready to be restored from: all of its files are open, so nothing that happens to its directory matters. */
import { closeSync, openSync } from 'node:fs';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import type { SnapshotManifest } from '../../contract/snapshot.js';
import type { Pool } from '../pool.js';
import { requireFile } from '../store/fit.js';
import type { Store } from '../store/store.js';
import type { Hardware } from '../vmm/driver.js';
import { type LoadProgress, MemoryImage } from './image.js';

export class LoadedSnapshot {
  private constructor(
    readonly manifest: SnapshotManifest,
    readonly memory: MemoryImage,
    readonly stateFd: number,
    readonly diskFds: number[],
  ) {}

  /** Throws SNAPSHOT_NOT_FOUND, SNAPSHOT_CORRUPT, SNAPSHOT_INCOMPATIBLE. */
  static async open(
    store: Store,
    manifest: SnapshotManifest,
    pool: Pool,
    options: { hugePages?: boolean; onProgress?: LoadProgress } = {},
  ): Promise<LoadedSnapshot> {
    const { tag } = manifest;
    const opened: number[] = [];
    const open = (path: string): number => {
      try {
        const fd = openSync(path, 'r');
        opened.push(fd);
        return fd;
      } catch (error) {
        // The tag may have been removed or replaced since its manifest was read.
        if (!store.exists(tag)) throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag }, error);
        throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: reasonOf(error) }, error);
      }
    };
    try {
      const state = open(manifest.vmstate);
      await requireFile(tag, 'root file system', manifest.rootfs, manifest.rootfs_digest, pool);
      for (const [i, { host_path }] of manifest.volumes.entries()) {
        const digest = manifest.volume_digests[i];
        if (!digest) throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `no digest of the volume ${host_path}` });
        await requireFile(tag, 'volume', host_path, digest, pool);
      }
      const disks = [manifest.rootfs, ...manifest.volumes.map((v) => v.host_path)].map(open);
      const memory = await MemoryImage.load(`forkd:${tag}`, manifest.memory, pool, options);
      return new LoadedSnapshot(manifest, memory, state, disks);
    } catch (error) {
      for (const fd of opened) closeSync(fd);
      throw error;
    }
  }

  /** The hardware its guest was saved with. Disks are named through our open descriptors. */
  get hardware(): Hardware {
    const { isolation, memory_mib, vcpus, vmm, volumes, tap } = this.manifest;
    const [rootfs, ...volumePaths] = this.diskFds.map((fd) => `/proc/${process.pid}/fd/${fd}`);
    return {
      isolation,
      memoryMib: memory_mib,
      vcpus,
      cpuModel: vmm.cpu_model,
      rootfs: rootfs ?? '',
      volumes: volumes.map((v, i) => ({ ...v, host_path: volumePaths[i] ?? v.host_path })),
      ...(tap ? { tap } : {}),
    };
  }

  close(): void {
    this.memory.close();
    for (const fd of [this.stateFd, ...this.diskFds]) closeSync(fd);
  }
}
