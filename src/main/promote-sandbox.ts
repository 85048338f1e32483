/** Makes a tag mean what a sandbox is now; it runs on. */
import { randomBytes } from 'node:crypto';
import type { PromoteReport } from '../contract/branches.js';
import type { Engine } from './engine.js';

/** The sandbox is branched under a name of its own first: the tag may be what it is made of. `write` settles when that is on disk. */
export const promoteSandbox = async (
  engine: Engine,
  write: (from: string) => Promise<void>,
  promote: (from: string) => Promise<PromoteReport>,
): Promise<PromoteReport> => {
  const from = `promote-${randomBytes(8).toString('hex')}`;
  try {
    await write(from);
    return await promote(from);
  } finally {
    try {
      await engine.forgetTemplates(from);
    } finally {
      if (engine.store.exists(from)) engine.store.remove(from, { force: true });
    }
  }
};
