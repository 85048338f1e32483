/** Native threads that work beside the event loop. */
import { availableParallelism } from 'node:os';

/** As many as can do something; the addon takes no more than 64. */
export const THREADS = Math.min(availableParallelism(), 64);
const DAY_MS = 24 * 60 * 60 * 1000;

/** Their promises do not keep the event loop alive: this does. */
export const whileAtWork = async <T>(work: () => Promise<T>): Promise<T> => {
  const timer = setInterval(() => undefined, DAY_MS);
  try {
    return await work();
  } finally {
    clearInterval(timer);
  }
};
