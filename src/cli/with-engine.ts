/** Gives a command an engine, and makes sure that it is closed: when the command ends, fails, or is interrupted. */
import { constants } from 'node:os';
import type { Engine } from '../main/engine.js';

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/**
 * The first signal aborts what is under way and everything is undone; a second one ends the process at once (the kernel
 * then ends its VMs, and `forkd cleanup` removes the directories).
 */
export const withEngine = async <T>(use: (engine: Engine, signal: AbortSignal) => Promise<T>): Promise<T> => {
  const abort = new AbortController();
  const onSignal = (name: NodeJS.Signals) => {
    if (abort.signal.aborted) process.exit(128 + constants.signals[name]);
    abort.abort();
  };
  for (const name of SIGNALS) process.on(name, onSignal);
  let engine: Engine | undefined;
  try {
    // Loaded here and not above: a mistake in the command line is told without it.
    engine = new (await import('../main/engine.js')).Engine();
    return await use(engine, abort.signal);
  } finally {
    await engine?.close();
    for (const name of SIGNALS) process.off(name, onSignal);
  }
};

/** Waits; ends early, without an error, when interrupted. */
export const sleep = (ms: number, signal: AbortSignal): Promise<void> =>
  new Promise((resolve) => {
    if (signal.aborted) return resolve();
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      resolve();
    });
  });
