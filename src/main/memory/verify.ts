/** Reads all that a chain has of memory, and holds it to its hashes. */
import type { LayerFile } from '../../contract/task.js';
import { native } from '../../native/binding.js';
import { THREADS, whileAtWork } from '../native-threads.js';

/** A disk that fails may damage every chunk; this many say enough. */
const PROBLEMS_MAX = 100;

export interface Verified {
  chunks: number;
  readBytes: number;
  problems: { tag: string; chunk: number; reason: string }[];
}

/** Of a layer: its handle, which stays the caller's, and for each chunk 1 if it need not be read. */
export interface KnownChunks {
  source: number;
  known: Uint8Array;
}

/**
 * Reads every chunk of the image of every link, base first: a frame that the head needs no more is still needed by the tag that owns it.
 * Goes on after a damaged one. `base`: what of the first was right when it was written.
 */
export const verifyLayers = async (layers: LayerFile[], base?: KnownChunks): Promise<Verified> => {
  const found: Verified = { chunks: 0, readBytes: 0, problems: [] };
  const known = new Set<string>();
  for (let count = 1; count <= layers.length; count++) {
    const isKnown = base && count === 1;
    const source = isKnown ? base.source : native.sourceOpen(layers.slice(0, count).map(({ fd }) => fd));
    const chunks = isKnown ? base.known : new Uint8Array();
    try {
      found.chunks += native.sourceInfo(source).chunks;
      const { readBytes, problems } = await whileAtWork(() =>
        native.sourceVerify(source, PROBLEMS_MAX, THREADS, chunks),
      );
      found.readBytes += readBytes;
      for (const { chunk, layer, reason } of problems) {
        const at = layer < 0 ? count - 1 : layer;
        if (known.has(`${at} ${chunk}`) || found.problems.length >= PROBLEMS_MAX) continue;
        known.add(`${at} ${chunk}`);
        found.problems.push({ tag: layers[at]?.tag ?? '', chunk, reason });
      }
    } finally {
      if (!isKnown) native.sourceClose(source);
    }
  }
  return found;
};
