/** A snapshot that is ready to be restored from: all of its files and its ancestors' are open, so nothing that happens to the directories matters. */
import { closeSync, openSync } from 'node:fs';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import type { FileDigest, SnapshotManifest } from '../../contract/snapshot.js';
import type { Pool } from '../pool.js';
import { requireFile } from '../store/fit.js';
import type { OpenChain } from '../store/open-chain.js';
import { readWorkingSet, writeWorkingSet } from '../store/working-set.js';
import { Undo } from '../undo.js';
import type { Hardware } from '../vmm/driver.js';
import { type GuestMemory, type LoadProgress, MemoryImage } from './image.js';
import { LazyImage, lazyProblem, type WorkingSet } from './lazy.js';
import { MemorySource } from './source.js';

export interface LoadOptions {
  hugePages?: boolean;
  /** Loads memory when it is touched, if the host can: for VMMs that hand their memory to a fault server. Huge pages are loaded at once. */
  lazy?: boolean;
  onProgress?: LoadProgress;
}

export class LoadedSnapshot {
  private constructor(
    readonly chain: OpenChain,
    readonly source: MemorySource,
    readonly memory: GuestMemory,
    readonly diskFds: number[],
  ) {}

  get manifest(): SnapshotManifest {
    return this.chain.manifest;
  }

  get stateFd(): number {
    return this.chain.stateFd;
  }

  /** Owns `chain` from then on, also when it fails. Throws SNAPSHOT_CORRUPT, SNAPSHOT_INCOMPATIBLE. */
  static async open(chain: OpenChain, pool: Pool, options: LoadOptions = {}): Promise<LoadedSnapshot> {
    const { tag, rootfs, rootfs_digest, volumes, volume_digests } = chain.manifest;
    const undo = new Undo();
    undo.push(() => chain.close());
    const open = (path: string): number => {
      const fd = openDisk(tag, path);
      undo.push(() => closeSync(fd));
      return fd;
    };
    try {
      await requireFile(tag, 'root file system', rootfs, rootfs_digest, pool);
      for (const [i, { host_path }] of volumes.entries()) {
        await requireFile(tag, 'volume', host_path, volume_digests[i] as FileDigest, pool);
      }
      const disks = [rootfs, ...volumes.map((v) => v.host_path)].map(open);
      const source = MemorySource.open(chain.layers);
      undo.push(() => source.close());
      const name = `forkd:${tag}`;
      const isLazy = options.lazy && !options.hugePages && lazyProblem() === undefined;
      const memory = isLazy
        ? LazyImage.open(name, source, pool.width, workingSetOf(chain, source))
        : await MemoryImage.load(name, source, pool, options);
      return new LoadedSnapshot(chain, source, memory, disks);
    } catch (error) {
      await undo.run();
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
    this.source.close();
    for (const fd of this.diskFds) closeSync(fd);
    this.chain.close();
  }
}

/** What was touched first the last time; without, what is touched first now is kept. */
const workingSetOf = ({ folder }: OpenChain, { info }: MemorySource): WorkingSet => {
  const known = readWorkingSet(folder, info.chunks);
  return known ? { known } : { record: (chunks) => writeWorkingSet(folder, chunks) };
};

const openDisk = (tag: string, path: string): number => {
  try {
    return openSync(path, 'r');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    throw new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag, reason: `${path} is missing` }, error);
  }
};
