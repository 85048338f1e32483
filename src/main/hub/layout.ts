/** Where the entries of a pack are in its unpacked content: the manifest says it, since an archive has nothing else. */
import { inOrder } from './first.js';
import { linkPath, type PackManifest } from './format.js';
import { sharedPlaces } from './shared-pages.js';
import { decodeHeader, requireZeros } from './tar-reader.js';

const TAR_BLOCK = 512;
/** Zeros after the end: tar pads to 10 KiB. */
const PADDING_MAX = 64 * 1024;
const END_BYTES = 2 * TAR_BLOCK;

const padded = (size: number): number => Math.ceil(size / TAR_BLOCK) * TAR_BLOCK;

export class Layout {
  readonly #bodies = new Map<string, number>();
  /** Behind the last entry. */
  readonly end: number;

  constructor(
    readonly manifest: PackManifest,
    manifestBytes: number,
    isSigned: boolean,
  ) {
    let at = TAR_BLOCK + padded(manifestBytes) + (isSigned ? 2 * TAR_BLOCK : 0);
    for (const { path, size } of manifest.files) {
      this.#bodies.set(path, at + TAR_BLOCK);
      at += TAR_BLOCK + padded(size);
    }
    this.end = at;
  }

  /** Where the content of an entry begins. */
  body(path: string): number {
    return this.#bodies.get(path) as number;
  }

  /**
   * Where the bytes of a link's layer are: [begin in the content, bytes, offset in the layer]. `moved` are those in memory.first, `shared` the pages
   * in `disks`, which are entries. Throws an Error when they lie outside, or meet.
   */
  layerPlaces(
    tag: string,
    moved: [number, number][],
    shared: Uint32Array,
    disks: string[],
  ): [number, number, number][] {
    const sizeOf = (path: string): number => this.manifest.files.find((file) => file.path === path)?.size as number;
    const layer = linkPath(tag, 'memory.layer');
    const bytes = sizeOf(layer);
    const places: [number, number, number][] = [];
    let first = this.body(linkPath(tag, 'memory.first'));
    for (const [offset, count] of moved) {
      places.push([first, count, offset]);
      first += count;
    }
    const bodies = disks.map((disk) => this.body(disk));
    for (const { disk, from, bytes: count, offset } of sharedPlaces(shared, bytes, disks.map(sizeOf)))
      places.push([(bodies[disk] as number) + from, count, offset]);
    const elsewhere = inOrder(
      places.map((place): [number, number] => [place[2], place[1]]),
      bytes,
    );
    elsewhere.push([bytes, 0]);
    // The layer itself has what is nowhere else.
    const body = this.body(layer);
    let end = 0;
    for (const run of elsewhere) {
      const offset = run[0];
      if (offset > end) places.push([body + end, offset - end, end]);
      end = offset + run[1];
    }
    return places;
  }

  /** What of a layer's entry has zeros, because its bytes are elsewhere: [begin in the content, bytes]. */
  elsewhere(tag: string, places: [number, number, number][]): [number, number][] {
    const layer = this.body(linkPath(tag, 'memory.layer'));
    return places
      .filter((place) => place[0] !== layer + place[2])
      .map((place): [number, number] => [layer + place[2], place[1]]);
  }

  /** What is between the contents of entries: [begin, bytes], in order. Throws an Error when the content cannot be that of the manifest. */
  gaps(contentBytes: number): [number, number][] {
    const more = contentBytes - this.end;
    if (more < END_BYTES) throw new Error('truncated');
    if (more > END_BYTES + PADDING_MAX) throw new Error('something follows its end');
    const gaps: [number, number][] = [];
    for (const { path, size } of this.manifest.files) {
      const body = this.body(path);
      gaps.push([body - TAR_BLOCK, TAR_BLOCK]);
      if (size % TAR_BLOCK !== 0) gaps.push([body + size, padded(size) - size]);
    }
    return [...gaps, [this.end, more]];
  }

  /** `content`: of the gaps, one behind the other. Throws an Error unless they are headers of the entries, and zeros. */
  checkGaps(content: Buffer): void {
    let at = 0;
    const take = (bytes: number): Buffer => {
      at += bytes;
      return content.subarray(at - bytes, at);
    };
    for (const file of this.manifest.files) {
      const header = decodeHeader(take(TAR_BLOCK));
      if (header.name !== file.path) throw new Error(`entry ${JSON.stringify(header.name)} is not ${file.path}`);
      if (header.size !== file.size) throw new Error(`${file.path} has another size than its manifest says`);
      requireZeros(take(padded(file.size) - file.size), 'padding is not zero');
    }
    requireZeros(content.subarray(at), 'its end is not an end');
  }
}
