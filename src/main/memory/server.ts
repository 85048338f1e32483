/** The main thread's end of a memory server. */
import { MessageChannel } from 'node:worker_threads';
import { type Remote, wrap } from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import type { MemoryServer } from '../../contract/memory-role.js';
import type { Pool } from '../pool.js';

/** Runs `use` with a memory server in a worker of its own, and ends it after. Throws WORKER_DIED; then nothing of it is at work any more. */
export const withMemoryServer = async <T>(
  pool: Pool,
  use: (server: Remote<MemoryServer>) => Promise<T>,
): Promise<T> => {
  const { port1, port2 } = new MessageChannel();
  const ended = pool.serve('memory', port2).catch((error: unknown) => reasonOf(error));
  const death = ended.then((reason) => {
    throw new ForkdError('WORKER_DIED', { task: 'memory', reason: reason ?? 'it ended before it was told to' });
  });
  const server = wrap<MemoryServer>(nodeEndpoint(port1));
  try {
    // A worker that dies answers nothing: its end is an answer too.
    return await Promise.race([use(server), death]);
  } finally {
    death.catch(() => undefined);
    await Promise.race([server.stop(), ended]);
    await ended;
    port1.close();
  }
};
