/**
 * Tags as the API takes them. The reference's daemon knows no dots in tags, its CLI does: what is on disk can be used
 * whatever its name, but nothing gets a dotted name here.
 */
import { ForkdError } from '../../contract/errors.js';
import { parseTag } from '../../contract/names.js';
import type { Store } from '../store/store.js';

/** The name of something that is to be made. Throws TAG_INVALID. */
export const newTag = (text: string): string => {
  const tag = parseTag(text);
  if (tag.includes('.')) throw new ForkdError('TAG_INVALID', { tag });
  return tag;
};

/** The name of something that may be there. Throws TAG_INVALID. */
export const storedTag = (store: Store, text: string): string => {
  const tag = parseTag(text);
  return store.exists(tag) ? tag : newTag(tag);
};
