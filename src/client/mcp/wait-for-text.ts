import { setTimeout as sleep } from 'node:timers/promises';
import type { Controller } from '../controller.js';

export interface WaitForText {
  path: string;
  marker: string;
  timeoutMs: number;
  pollMs: number;
  signal: AbortSignal;
}

export interface FoundText {
  found: boolean;
  elapsed_ms: number;
  /** The end of what was last read. */
  last_excerpt: string;
}

/** Of the file's end, so much is looked at. */
const TAIL_BYTES = 4096;
const EXCERPT_CHARS = 256;
const EXEC_SECS = 5;

/** Reads the end of a file, again and again, until `marker` is in it. A file that is not there yet is waited for. Throws what the daemon refuses. */
export const waitForText = async (controller: Controller, id: string, wait: WaitForText): Promise<FoundText> => {
  const { path, marker, timeoutMs, pollMs, signal } = wait;
  const began = performance.now();
  let tail = '';
  for (;;) {
    signal.throwIfAborted();
    // No shell: a path is a path, whatever is in it.
    const args = ['tail', '-c', String(TAIL_BYTES), '--', path];
    const { stdout, exit_code } = await controller.execCommand(id, args, { timeoutSecs: EXEC_SECS });
    if (exit_code === 0) tail = stdout;
    const elapsed_ms = Math.round(performance.now() - began);
    const found = tail.includes(marker);
    if (found || elapsed_ms + pollMs > timeoutMs)
      return { found, elapsed_ms, last_excerpt: tail.slice(-EXCERPT_CHARS) };
    await sleep(pollMs, undefined, { signal });
  }
};
