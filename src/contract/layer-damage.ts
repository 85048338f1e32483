/** What the native layer code throws about a damaged layer, as an error that names the snapshot. */
import { errnoOf, ForkdError, reasonOf } from './errors.js';

/** A layer of an image, as errors name it. */
export interface LayerName {
  tag: string;
  path: string;
}

/** SNAPSHOT_CORRUPT for a damaged or unreadable layer of `layers` (base first); any other error as it is. */
export const damageOf = (thrown: unknown, layers: LayerName[]): unknown => {
  const head = layers.at(-1);
  if (!head || !['LAYER_DAMAGED', 'EIO'].includes(errnoOf(thrown) ?? '')) return thrown;
  const { layer } = thrown as { layer?: number };
  const { tag, path } = layers[layer ?? -1] ?? head;
  const whose = tag === head.tag ? '' : `, and '${head.tag}' is made of it`;
  return new ForkdError('SNAPSHOT_CORRUPT', { tag, reason: `${path}: ${reasonOf(thrown)}${whose}` }, thrown);
};
