/** The main thread's end of a memory server. */
import { MessageChannel } from 'node:worker_threads';
import { type Remote, wrap } from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import type { MemoryServer } from '../../contract/memory-role.js';
import type { Pool } from '../pool.js';

/** Runs `use` with a memory server in a worker of its own, and ends it after. */
export const withMemoryServer = async <T>(
  pool: Pool,
  use: (server: Remote<MemoryServer>) => Promise<T>,
): Promise<T> => {
  const { port1, port2 } = new MessageChannel();
  const ended = pool.serve('memory', port2);
  const server = wrap<MemoryServer>(nodeEndpoint(port1));
  try {
    // A worker that dies answers nothing: its end is an answer too.
    return await Promise.race([use(server), ended.then(() => Promise.reject(new Error('the memory server ended')))]);
  } finally {
    await Promise.race([server.stop(), ended.catch(() => undefined)]);
    await ended.catch(() => undefined);
    port1.close();
  }
};
