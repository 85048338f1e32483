/** Every file of a snapshot and its ancestors, open, and all of their directories marked as in use until it is closed. */
import { ForkdError } from '../../contract/errors.js';
import type { SnapshotManifest } from '../../contract/snapshot.js';
import type { LayerFile } from '../../contract/task.js';
import { type Locate, resolveChain } from './chain.js';
import { TagDir } from './tag-dir.js';

const partialError = (tag: string): ForkdError => new ForkdError('SNAPSHOT_PARTIAL', { tag });

export class OpenChain {
  private constructor(
    /** Base first. */
    readonly dirs: TagDir[],
    readonly stateFd: number,
    readonly layers: LayerFile[],
  ) {}

  /** Throws as Store.chain does, and SNAPSHOT_PARTIAL for a tag that is not whole; with `partial` the tag itself need not be. */
  static open(
    pathOf: (tag: string) => string,
    tag: string,
    { partial = false, locate }: { partial?: boolean; locate?: Locate } = {},
  ): OpenChain {
    const held: TagDir[] = [];
    const hold = (name: string): TagDir => {
      const dir = TagDir.hold(pathOf(name), name);
      held.push(dir);
      return dir;
    };
    try {
      const dirs = resolveChain(tag, hold, locate);
      for (const [i, dir] of dirs.slice(1).entries()) dir.relink((dirs[i] as TagDir).tag);
      for (const dir of dirs) if (dir.isPartial && !(partial && dir.tag === tag)) throw partialError(dir.tag);
      const layers = dirs.map((dir) => ({ tag: dir.tag, path: dir.manifest.memory, fd: dir.openMemory() }));
      return new OpenChain(dirs, (dirs.at(-1) as TagDir).openState(), layers);
    } catch (error) {
      for (const dir of held) dir.close();
      throw error;
    }
  }

  /** Of the snapshot itself. */
  get manifest(): SnapshotManifest {
    return (this.dirs.at(-1) as TagDir).manifest;
  }

  /** Of the snapshot itself, for what is kept beside its files. */
  get folder(): string {
    return (this.dirs.at(-1) as TagDir).folder;
  }

  /** Not all of the snapshot itself has been fetched. */
  get isPartial(): boolean {
    return (this.dirs.at(-1) as TagDir).isPartial;
  }

  close(): void {
    for (const dir of this.dirs) dir.close();
  }
}
