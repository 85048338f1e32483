/**
 * The links of a chain that is being unpacked, each in a staging directory of the store. It is opened there as a fork would open it, held to what
 * snapshots must be, and then appears, base first.
 */
import { closeSync, fsync, linkSync, openSync, rmSync, statSync } from 'node:fs';
import { promisify } from 'node:util';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { parseTag } from '../../contract/names.js';
import {
  type FileDigest,
  MANIFEST_FILE,
  MEMORY_FILE,
  type SnapshotManifest,
  STATE_FILE,
} from '../../contract/snapshot.js';
import { OpenChain } from '../store/open-chain.js';
import type { Staging } from '../store/staging.js';
import type { Store } from '../store/store.js';
import type { Undo } from '../undo.js';
import { invalid } from './format.js';

export interface StagedLink {
  /** Its name in the pack, and here. */
  from: string;
  to: string;
  staging: Staging;
}

/** A kernel, an initramfs or a root disk, in a file that each link gets by its own name. */
export interface StagedDisk {
  blake3: string;
  size: number;
  path: string;
}

export interface Arrived {
  tag: string;
  dir: string;
  /** Tags that appeared, base first; ancestors that were there already are not among them. */
  made: string[];
}

export interface ChainRequest {
  path: string;
  /** Another name for the head of the chain. */
  tag?: string;
  force?: boolean;
}

export class StagedChain {
  readonly links: StagedLink[] = [];
  /** Ancestors that have appeared while the head has not, newest first. */
  readonly #half: string[] = [];
  /** Files that may not yet be on the disk. */
  readonly #created: number[] = [];

  /**
   * Takes the tags. `tags`: of the pack, base first; `bytes`: of all that will be written. What `undo` runs gives all of it back.
   * Throws PACK_INVALID, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, DISK_FULL.
   */
  constructor(
    readonly store: Store,
    readonly request: ChainRequest,
    tags: string[],
    bytes: number,
    readonly undo: Undo,
  ) {
    const last = tags.at(-1) as string;
    const head = parseTag(request.tag ?? last);
    if (tags.slice(0, -1).includes(head)) throw invalid(request.path, `'${head}' is the name of an ancestor in it`);
    if (store.exists(head) && !request.force) throw new ForkdError('SNAPSHOT_EXISTS', { tag: head });
    // Undone last: a removal takes the lock that is held until then.
    undo.push(() => this.#half.forEach((tag) => void store.remove(tag)));
    store.requireSpace(bytes);
    for (const from of tags) {
      const to = from === last ? head : from;
      const lock = store.lock(to);
      undo.push(() => lock.release());
      const staging = store.stage(to);
      undo.push(() => staging.discard());
      this.links.push({ from, to, staging });
    }
  }

  get head(): StagedLink {
    return this.links.at(-1) as StagedLink;
  }

  /** A new file, which is synced before anything appears. */
  create(path: string): number {
    const fd = openSync(path, 'wx+', 0o644);
    this.undo.push(() => closeSync(fd));
    this.#created.push(fd);
    return fd;
  }

  /** Opens the staged chain as a fork would. Throws PACK_INVALID, or an Error with the reason. */
  open(): OpenChain {
    const chain = this.#openStaged();
    this.undo.push(() => chain.close());
    const manifests = chain.dirs.map((dir) => dir.manifest);
    if (manifests.map((m) => m.tag).join(' ') !== this.links.map((link) => link.from).join(' '))
      throw new Error('its chain is another than its manifest says');
    for (const [i, m] of manifests.entries()) {
      const wrong = harmful(m);
      if (wrong !== undefined) throw invalid(this.request.path, `snapshot.json of '${m.tag}': ${wrong}`);
      chain.dirs[i]?.openState();
    }
    return chain;
  }

  #openStaged(): OpenChain {
    const stagedOf = (tag: string): string => {
      const link = this.links.find(({ from }) => from === tag);
      if (!link) throw new Error(`its chain needs '${tag}', which is not in it`);
      return link.staging.path;
    };
    try {
      return OpenChain.open(stagedOf, this.head.from);
    } catch (error) {
      throw invalid(this.request.path, reasonOf(error), error);
    }
  }

  /** Gives each link its disks, and a manifest that names them here. Throws an Error with the reason. */
  settle(chain: OpenChain, disks: StagedDisk[]): SnapshotManifest[] {
    return chain.dirs.map(({ manifest }, i) => this.#settleLink(this.links[i] as StagedLink, manifest, disks));
  }

  #settleLink(link: StagedLink, m: SnapshotManifest, disks: StagedDisk[]): SnapshotManifest {
    const { staging, to } = link;
    const dir = this.store.dir(to);
    const place = ({ blake3, bytes }: FileDigest, name: string): FileDigest => {
      const disk = disks.find((one) => one.blake3 === blake3);
      if (!disk || disk.size !== bytes) throw new Error(`the ${name} of '${link.from}' is not in it`);
      linkSync(disk.path, staging.file(name));
      return { blake3, bytes, path: `${dir}/${name}`, mtime_ms: statSync(staging.file(name)).mtimeMs };
    };
    const [kernel, initrd, rootfs_digest] = [
      place(m.kernel, 'kernel'),
      place(m.initrd, 'initrd'),
      place(m.rootfs_digest, 'rootfs.ext4'),
    ];
    rmSync(staging.file(MANIFEST_FILE));
    const paths = { vmstate: `${dir}/${STATE_FILE}`, memory: `${dir}/${MEMORY_FILE}`, rootfs: rootfs_digest.path };
    return { ...m, ...paths, tag: to, kernel, initrd, rootfs_digest };
  }

  /** Settles when all that was created is on the disk. */
  async sync(): Promise<void> {
    await Promise.all(this.#created.map((fd) => syncFile(fd)));
  }

  /** Throws what publishing throws; then nothing has appeared. */
  publish(manifests: SnapshotManifest[]): Arrived {
    const made: string[] = [];
    for (const [i, link] of this.links.entries()) {
      if (!this.#publishLink(link, manifests[i] as SnapshotManifest)) continue;
      made.push(link.to);
      if (link !== this.head) this.#half.unshift(link.to);
    }
    this.#half.length = 0;
    return { tag: this.head.to, dir: this.store.dir(this.head.to), made };
  }

  /** An ancestor that is here with the same memory is as good. */
  #publishLink({ to, staging }: StagedLink, manifest: SnapshotManifest): boolean {
    const isHead = to === this.head.to;
    if (!isHead && this.store.exists(to)) {
      if (this.store.manifest(to).memory_root === manifest.memory_root) return false;
      throw new ForkdError('SNAPSHOT_EXISTS', { tag: to });
    }
    staging.publish(manifest, isHead && (this.request.force ?? false));
    return true;
  }
}

/** What a manifest could make QEMU do besides running the guest: these texts become part of its options. */
export const harmful = (m: SnapshotManifest): string | undefined => {
  if (m.volumes.length > 0) return 'volumes are files of a host, and a pack brings none';
  if (m.tap !== undefined && !/^[\w.-]{1,15}$/.test(m.tap)) return 'tap is not the name of an interface';
  if (!/^[\w.+=,-]{1,500}$/.test(m.vmm.cpu_model)) return 'cpu_model is not one';
  if (!/^[\w.+=,-]{1,500}$/.test(m.vmm.machine)) return 'machine is not one';
  return undefined;
};

const syncFile = promisify(fsync);
