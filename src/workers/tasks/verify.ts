import { CHUNK_BYTES } from '../../contract/page-map.js';
import { errnoOf, reasonOf } from '../../contract/errors.js';
import type { TaskInput, TaskOutput } from '../../contract/task.js';
import { native } from '../../native/binding.js';

/** A disk that fails may damage every chunk; this many say enough. */
const PROBLEMS_MAX = 100;

/** Chunks in a row that one of several tasks takes: what is stored lies in parts of an image. */
const ROW = 64;

/**
 * Reads every chunk of the image of every link: a frame that the head needs no more is still needed by the tag that owns it.
 * Goes on after a damaged one. With `part`, that of `of` parts.
 */
export const verify = ({ layers, part = 0, of = 1 }: TaskInput<'verify'>): TaskOutput<'verify'> => {
  const into = new Uint8Array(CHUNK_BYTES);
  const found = { chunks: 0, readBytes: 0, problems: [] as TaskOutput<'verify'>['problems'] };
  const known = new Set<string>();
  for (let count = 1; count <= layers.length; count++) {
    const source = native.sourceOpen(layers.slice(0, count).map(({ fd }) => fd));
    try {
      const { chunks } = native.sourceInfo(source);
      for (let chunk = 0; chunk < chunks && found.problems.length < PROBLEMS_MAX; chunk++) {
        if (Math.floor(chunk / ROW) % of !== part) continue;
        found.chunks++;
        try {
          found.readBytes += native.sourceRead(source, chunk, into);
        } catch (error) {
          if (!['LAYER_DAMAGED', 'EIO'].includes(errnoOf(error) ?? '')) throw error;
          const { layer = count - 1 } = error as { layer?: number };
          const { tag = '' } = layers[layer] ?? {};
          if (!known.has(`${layer} ${chunk}`)) found.problems.push({ tag, chunk, reason: reasonOf(error) });
          known.add(`${layer} ${chunk}`);
        }
      }
    } finally {
      native.sourceClose(source);
    }
  }
  return found;
};
