/** What `forkd cleanup --yes` would remove from the daemon's own store too, when it starts: by then it has what is its own, and what is in use is left. */
import { reasonOf } from '../../contract/errors.js';
import { formatBytes } from '../../contract/units.js';
import { findLeftovers, type Leftover, removalProblem, removeLeftover } from '../host/cleanup.js';

/** Returns what is worth telling. */
export const tidy = async (snapshotRoot: string): Promise<string[]> => {
  let found: Leftover[];
  try {
    found = findLeftovers(snapshotRoot).remove;
  } catch (error) {
    return [`cannot look for what killed runs left behind: ${reasonOf(error)}`];
  }
  const told: string[] = [];
  for (const one of found) {
    // The same pull would go on with it.
    if (one.kind === 'partial download') continue;
    const { kind, path, bytes } = one;
    try {
      await removeLeftover(one, snapshotRoot);
      told.push(`removed ${kind} ${path} (${formatBytes(bytes)}), left behind by a killed run`);
    } catch (error) {
      told.push(`${kind} ${path} stays: ${removalProblem(error)}`);
    }
  }
  return told;
};
