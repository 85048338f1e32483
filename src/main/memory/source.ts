/** Where the chunks of an image come from: the layers of a chain, merged. Valid in every worker by its handle. */
import { damageOf, type LayerName } from '../../contract/layer-damage.js';
import type { LayerFile } from '../../contract/task.js';
import { native, type SourceInfo } from '../../native/binding.js';

export class MemorySource {
  private constructor(
    readonly handle: number,
    /** Base first. */
    readonly layers: LayerName[],
    readonly info: SourceInfo,
  ) {}

  /** The descriptors are duplicated. Throws SNAPSHOT_CORRUPT. */
  static open(layers: LayerFile[]): MemorySource {
    const names = layers.map(({ tag, path }) => ({ tag, path }));
    try {
      const handle = native.sourceOpen(layers.map(({ fd }) => fd));
      return new MemorySource(handle, names, native.sourceInfo(handle));
    } catch (error) {
      throw damageOf(error, names);
    }
  }

  close(): void {
    native.sourceClose(this.handle);
  }
}
