/** Which suite runs when. */
import { availableParallelism } from 'node:os';

/** Most suites wait for a guest, a disk or a timeout for a part of their time: one more of them than there are processors. */
export const LANES = availableParallelism() + 1;

/** Long suites, the longest first: begun late, one would run on alone while the other processors have nothing left to do. */
const LONG = [
  'template/template',
  'bench/smoke',
  'template/limits',
  'snapshot/faults',
  'cli/daemon-verbs',
  'guest/agent',
  'fork/command',
  'template/worker',
  'hub/pack',
  'hotfork/hotfork',
];

/** Suites that need neither the host's packages nor the guest image nor the parent: they run while those are made. */
const NEEDS_NOTHING = /^(contract|hotfork|native|planner|runner|sandbox|store)\//;

export const needsParent = (suite: string): boolean => !NEEDS_NOTHING.test(suite);

/** In the order in which they are begun. */
export const inOrder = (suites: string[]): string[] => {
  const rank = (suite: string) => {
    const at = LONG.findIndex((long) => suite.startsWith(`${long}.`));
    return at < 0 ? LONG.length : at;
  };
  return [...suites].sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
};

/**
 * Runs everything in `count` lanes: whichever is free takes the first that may be run. `ready` settles when those that need
 * the parent may; if it rejects, they are not run and this rejects with the same, after the others have ended.
 */
export const runInLanes = async (
  suites: string[],
  count: number,
  ready: Promise<unknown>,
  run: (suite: string, lane: number) => Promise<void>,
): Promise<void> => {
  const queue = inOrder(suites);
  let isReady = false;
  const prepared = ready.then(() => {
    isReady = true;
  });
  prepared.catch(() => undefined);
  const lane = async (_: unknown, index: number) => {
    while (queue.length > 0) {
      const next = queue.findIndex((suite) => isReady || !needsParent(suite));
      if (next < 0) await prepared;
      else await run(queue.splice(next, 1)[0] as string, index);
    }
  };
  const ends = await Promise.allSettled(Array.from({ length: count }, lane));
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
};
