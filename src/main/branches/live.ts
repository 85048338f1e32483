/** The sandboxes of this user on this host, whoever keeps them. */
import type { LiveChild } from '../../contract/branches.js';
import { sandboxesDir } from '../paths.js';
import { living } from '../sandbox/registry.js';

export const publishedChildren = (): LiveChild[] =>
  living(sandboxesDir()).map(({ id, snapshot_tag, snapshot_root, pid, created_at_unix }) => ({
    id,
    snapshot_tag,
    ...(snapshot_root === undefined ? {} : { snapshot_root }),
    pid,
    created_at_unix,
    owner: 'command',
  }));

/** Each once; what the daemon says of one is taken, with the root that its record has. */
export const mergeChildren = (published: LiveChild[], ofDaemon: LiveChild[]): LiveChild[] => {
  const all = new Map(published.map((one) => [one.id, one]));
  for (const one of ofDaemon) all.set(one.id, { ...all.get(one.id), ...one });
  return [...all.values()].sort((a, b) => a.id.localeCompare(b.id));
};
