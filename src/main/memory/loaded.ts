/** A snapshot that is ready to be restored from: all of its files and its ancestors' are open, so nothing that happens to the directories matters. */
import { closeSync, openSync } from 'node:fs';
import { errnoOf, ForkdError } from '../../contract/errors.js';
import type { Patience } from '../../contract/patience.js';
import { type FileDigest, hasCard, type SnapshotManifest, SERIAL_PORTS_BEFORE } from '../../contract/snapshot.js';
import type { Pool } from '../pool.js';
import { requireFile } from '../store/fit.js';
import type { OpenChain } from '../store/open-chain.js';
import { readWorkingSet, writeWorkingSet } from '../store/working-set.js';
import { Undo } from '../undo.js';
import type { Hardware } from '../vmm/driver.js';
import { type GuestMemory, type LoadProgress, MemoryImage } from './image.js';
import { LazyImage, lazyProblem, type WorkingSet } from './lazy.js';
import { RemoteSnapshot } from './remote.js';
import { MemorySource } from './source.js';

export interface LoadOptions {
  hugePages?: boolean;
  /** Loads memory when it is touched, if the host can: for VMMs that hand their memory to a fault server. Huge pages are loaded at once. */
  lazy?: boolean;
  onProgress?: LoadProgress;
  /** With the server of one of which not all is here. */
  patience?: Partial<Patience>;
}

/** Can this host start a snapshot of which not all is here? */
export const canBePartial = ({ lazy, hugePages }: LoadOptions): boolean =>
  lazy === true && !hugePages && lazyProblem() === undefined;

export class LoadedSnapshot {
  private constructor(
    readonly chain: OpenChain,
    readonly source: MemorySource,
    readonly memory: GuestMemory,
    readonly diskFds: number[],
    /** What brings the rest of it, when it was not whole. */
    readonly remote?: RemoteSnapshot,
  ) {}

  get manifest(): SnapshotManifest {
    return this.chain.manifest;
  }

  get stateFd(): number {
    return this.chain.stateFd;
  }

  /** Owns `chain` from then on, also when it fails. One that is not whole needs `canBePartial`. Throws SNAPSHOT_CORRUPT, SNAPSHOT_INCOMPATIBLE. */
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
      const isPartial = chain.isPartial;
      if (!isPartial) await requireFile(tag, 'root file system', rootfs, rootfs_digest);
      for (const [i, { host_path }] of volumes.entries()) {
        await requireFile(tag, 'volume', host_path, volume_digests[i] as FileDigest);
      }
      const disks = [rootfs, ...volumes.map((v) => v.host_path)].map(open);
      const source = MemorySource.open(chain.layers);
      undo.push(() => source.close());
      const name = `forkd:${tag}`;
      if (!canBePartial(options)) {
        const memory = await MemoryImage.load(name, source, pool, options);
        return new LoadedSnapshot(chain, source, memory, disks);
      }
      const workingSet = workingSetOf(chain, source);
      const { known = new Uint32Array() } = workingSet;
      const remote = isPartial
        ? RemoteSnapshot.open(chain, source, disks[0] as number, pool, known, options.patience)
        : undefined;
      if (remote) undo.push(() => remote.close());
      const memory = LazyImage.open(name, source, pool.width, workingSet, remote);
      return new LoadedSnapshot(chain, source, memory, disks, remote);
    } catch (error) {
      await undo.run();
      throw error;
    }
  }

  /** The hardware its guest was saved with. Disks are named through our open descriptors. */
  get hardware(): Hardware {
    const { isolation, memory_mib, vcpus, vmm, volumes } = this.manifest;
    const [rootfs, ...volumePaths] = this.diskFds.map((fd) => `/proc/${process.pid}/fd/${fd}`);
    return {
      isolation,
      memoryMib: memory_mib,
      vcpus,
      cpuModel: vmm.cpu_model,
      serialPorts: vmm.serial_ports ?? SERIAL_PORTS_BEFORE,
      rootfs: rootfs ?? '',
      volumes: volumes.map((v, i) => ({ ...v, host_path: volumePaths[i] ?? v.host_path })),
      card: hasCard(this.manifest),
    };
  }

  close(): void {
    this.memory.close();
    const close = (): void => {
      this.source.close();
      for (const fd of this.diskFds) closeSync(fd);
      this.chain.close();
    };
    if (this.remote) void this.remote.leave().then(close);
    else close();
  }
}

/** What was touched first until now; what is touched first this time is added. */
const workingSetOf = ({ folder }: OpenChain, { info }: MemorySource): WorkingSet => {
  const known = readWorkingSet(folder, info.chunks);
  return { ...(known ? { known } : {}), record: (chunks) => writeWorkingSet(folder, chunks) };
};

const openDisk = (tag: string, path: string): number => {
  try {
    return openSync(path, 'r');
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT') throw error;
    throw new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag, reason: `${path} is missing` }, error);
  }
};
