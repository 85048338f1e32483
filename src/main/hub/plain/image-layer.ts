/** A memory image that arrives from front to back and becomes a layer on its way: there is never a file of the whole image. */
import { CHUNK_BYTES } from '../../../contract/page-map.js';
import { LAYER_ZSTD_LEVEL } from '../../../contract/snapshot.js';
import { native } from '../../../native/binding.js';

/** Held in memory: of many chunks, so that native code is called seldom. */
const WINDOW_BYTES = 64 * CHUNK_BYTES;

export interface ParentImage {
  /** Handle of an open source. */
  source: number;
  root: string;
}

export class ImageLayer {
  readonly #stream: number;
  readonly #window = Buffer.alloc(WINDOW_BYTES);
  /** Which window is held; -1 before the first. */
  #held = -1;

  /** `fd`: the file that becomes the layer; the caller closes it. Throws EINVAL for a size that no image has, or another than the parent's. */
  constructor(
    fd: number,
    readonly imageBytes: number,
    readonly parent?: ParentImage,
  ) {
    const below = parent ? { parent: parent.source, parentRoot: parent.root } : {};
    this.#stream = native.layerStreamOpen(fd, imageBytes, { zstdLevel: LAYER_ZSTD_LEVEL, ...below });
  }

  /** Bytes of the image from `at` on, which do not lie before those that came already. What never comes is zero. */
  write(at: number, part: Buffer): void {
    for (let done = 0; done < part.length; ) {
      const window = Math.floor((at + done) / WINDOW_BYTES);
      if (window !== this.#held) this.#hold(window);
      const from = at + done - window * WINDOW_BYTES;
      const length = Math.min(part.length - done, WINDOW_BYTES - from);
      part.copy(this.#window, from, done, done + length);
      done += length;
    }
  }

  /** Returns the root. */
  finish(): string {
    this.#hold(Math.ceil(this.imageBytes / WINDOW_BYTES));
    return native.layerStreamFinish(this.#stream).root;
  }

  /** Once, whether it was finished or not. */
  close(): void {
    native.layerStreamClose(this.#stream);
  }

  /** Zeros are of no use in a base, and in a link hide what its parent has. */
  #hold(window: number): void {
    while (this.parent && this.#held + 1 < window) this.#next(this.#held + 1);
    this.#next(window);
  }

  #next(window: number): void {
    this.#flush();
    this.#held = window;
    this.#window.fill(0);
  }

  /** Of the window, inside the image. */
  get #bytes(): number {
    return Math.min(WINDOW_BYTES, this.imageBytes - this.#held * WINDOW_BYTES);
  }

  #flush(): void {
    if (this.#held < 0) return;
    const chunk = (this.#held * WINDOW_BYTES) / CHUNK_BYTES;
    native.layerStreamAppend(this.#stream, chunk, this.#window.subarray(0, this.#bytes));
  }
}
