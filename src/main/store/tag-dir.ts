/**
 * One snapshot directory, held open. Every file is reached through the directory's descriptor, so all of them belong to one
 * version of the tag, whatever is removed or put in its place meanwhile.
 */
import { closeSync, constants, existsSync, fstatSync, openSync, statSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { errnoOf, ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { type FileDigest, MANIFEST_FILE, REMOTE_FILE, type SnapshotManifest } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { soon } from '../host/soon.js';
import { readManifest } from './manifest.js';
import { shareUse } from './use-lock.js';

export class TagDir {
  #manifest: SnapshotManifest | undefined;

  /** `opened`: the directory, then its files. */
  private constructor(
    readonly tag: string,
    readonly path: string,
    readonly opened: number[],
  ) {}

  /** Throws SNAPSHOT_NOT_FOUND, SNAPSHOT_CORRUPT, SNAPSHOT_INCOMPATIBLE. */
  static open(path: string, tag: string): TagDir {
    return TagDir.#settled(path, tag, () => true);
  }

  /** The same, and until it is closed other processes see that the tag is in use. Throws SNAPSHOT_BUSY too. */
  static hold(path: string, tag: string): TagDir {
    return TagDir.#settled(path, tag, shareUse);
  }

  /** Looks again when the tag was replaced or removed in this moment, or may be: a removal that has it can still be refused. */
  static #settled(path: string, tag: string, mark: (manifestFd: number) => boolean): TagDir {
    const found = soon(limits.storeTurnMs, () => TagDir.#look(path, tag, mark));
    if (found) return found;
    throw new ForkdError('SNAPSHOT_BUSY', { tag });
  }

  static #look(path: string, tag: string, mark: (manifestFd: number) => boolean): TagDir | undefined {
    const dir = new TagDir(tag, path, [openDir(path, tag)]);
    try {
      const manifestFd = dir.#openFile(join(path, MANIFEST_FILE));
      if (mark(manifestFd)) {
        dir.#manifest = dir.#read(manifestFd);
        return dir;
      }
    } catch (error) {
      const isThere = dir.isThere;
      dir.close();
      if (isThere) throw error;
      return undefined;
    }
    dir.close();
    return undefined;
  }

  /** Its paths are of the files in this directory: what the manifest says about itself may be of another place. */
  #read(manifestFd: number): SnapshotManifest {
    const said = readManifest(this.tag, join(this.path, MANIFEST_FILE), manifestFd);
    return { ...movedTo(said, this.path), tag: this.tag };
  }

  /** Says that its parent has another name by now. */
  relink(parent: string): void {
    this.#manifest = { ...this.manifest, parent_tag: parent };
  }

  get manifest(): SnapshotManifest {
    return this.#manifest as SnapshotManifest;
  }

  /** Is the directory that we have open still the one of that name? */
  get isThere(): boolean {
    const now = statSync(this.path, { throwIfNoEntry: false });
    const ours = fstatSync(this.opened[0] as number);
    return now?.ino === ours.ino && now.dev === ours.dev;
  }

  /** The directory that is open, whatever has become of its name. */
  get folder(): string {
    return `/proc/self/fd/${this.opened[0]}`;
  }

  /** Not all of it has been fetched. */
  get isPartial(): boolean {
    return existsSync(`${this.folder}/${REMOTE_FILE}`);
  }

  /** Device state, by its size. `close` closes it. Throws SNAPSHOT_CORRUPT. */
  openState(): number {
    const { vmstate, vmstate_bytes } = this.manifest;
    const fd = this.#openFile(vmstate);
    const { bytes } = native.fdSize(fd);
    if (bytes !== vmstate_bytes) throw this.#damaged(`${vmstate} has ${bytes} bytes instead of ${vmstate_bytes}`);
    return fd;
  }

  /** The memory layer, whole, and the very one of the manifest. `close` closes it. Throws SNAPSHOT_CORRUPT. */
  openMemory(): number {
    const { memory, memory_root, memory_bytes, parent_content_hash = null } = this.manifest;
    const fd = this.#openFile(memory);
    const { root, imageBytes, parentRoot } = this.#layer(fd);
    if (root !== memory_root) throw this.#damaged(`${memory} has the root ${root} instead of ${memory_root}`);
    if (imageBytes !== memory_bytes) {
      throw this.#damaged(`${memory} is of ${imageBytes} bytes of memory instead of ${memory_bytes}`);
    }
    if (parentRoot !== parent_content_hash) {
      const of = parentRoot === null ? 'of no parent' : `of the parent ${parentRoot}`;
      throw this.#damaged(`${memory} is ${of}, and the manifest says otherwise`);
    }
    return fd;
  }

  #layer(fd: number) {
    try {
      return native.layerOpen(fd);
    } catch (error) {
      throw this.#damaged(`${this.manifest.memory}: ${reasonOf(error)}`, error);
    }
  }

  /** By the descriptor of the directory. Without waiting: a pipe is not a snapshot's file. */
  #openFile(path: string): number {
    const name = basename(path);
    try {
      const fd = openSync(`/proc/self/fd/${this.opened[0]}/${name}`, constants.O_RDONLY | constants.O_NONBLOCK);
      this.opened.push(fd);
      if (!fstatSync(fd).isFile()) throw new Error('it is not a file');
      return fd;
    } catch (error) {
      if (isOfTheProcess(error)) throw error;
      if (!this.isThere) throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag: this.tag }, error);
      const reason = errnoOf(error) === 'ENOENT' ? `${path} is missing` : `${path}: ${reasonOf(error)}`;
      throw this.#damaged(reason, error);
    }
  }

  #damaged(reason: string, cause?: unknown): ForkdError {
    return new ForkdError('SNAPSHOT_CORRUPT', { tag: this.tag, reason }, cause);
  }

  close(): void {
    for (const fd of this.opened.splice(0)) closeSync(fd);
  }
}

/** Of a snapshot's files, those that were in its own directory; a pack brings disks into it. */
export const movedTo = (said: SnapshotManifest, dir: string): SnapshotManifest => {
  const home = dirname(said.vmstate);
  const at = (path: string): string => (dirname(path) === home ? join(dir, basename(path)) : path);
  const moved = (file: FileDigest): FileDigest => ({ ...file, path: at(file.path) });
  return {
    ...said,
    vmstate: join(dir, basename(said.vmstate)),
    memory: join(dir, basename(said.memory)),
    rootfs: at(said.rootfs),
    kernel: moved(said.kernel),
    initrd: moved(said.initrd),
    rootfs_digest: moved(said.rootfs_digest),
  };
};

const openDir = (path: string, tag: string): number => {
  try {
    return openSync(path, constants.O_RDONLY | constants.O_DIRECTORY);
  } catch (error) {
    if (isOfTheProcess(error)) throw error;
    if (errnoOf(error) === 'ENOENT') throw new ForkdError('SNAPSHOT_NOT_FOUND', { tag });
    throw new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `${path}: ${reasonOf(error)}` }, error);
  }
};

/** It says something about this process, nothing about the snapshot. */
const isOfTheProcess = (error: unknown): boolean =>
  ['EACCES', 'EPERM', 'EMFILE', 'ENFILE', 'ENOMEM'].includes(errnoOf(error) ?? '');
