import { ForkdError } from '../../contract/errors.js';
import type { LabelQuery, Labels } from '../../contract/rest.js';

/** Whether something has every label of the query. Throws QUERY_INVALID. */
export const labelFilter = ({ label = [] }: LabelQuery): ((one: { labels?: Labels }) => boolean) => {
  const wanted = [label].flat().map((text): [string, string] => {
    const at = text.indexOf('=');
    if (at < 1) throw new ForkdError('QUERY_INVALID', { reason: `label '${text}' is not KEY=VALUE` });
    return [text.slice(0, at), text.slice(at + 1)];
  });
  return ({ labels = {} }) => wanted.every(([key, value]) => Object.hasOwn(labels, key) && labels[key] === value);
};
