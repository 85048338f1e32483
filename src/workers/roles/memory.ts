import type { MessagePort } from 'node:worker_threads';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { expose } from 'comlink';
import nodeEndpoint from 'comlink/dist/esm/node-adapter.mjs';
import { ForkdError } from '../../contract/errors.js';
import { damageOf } from '../../contract/layer-damage.js';
import type { MemoryServer } from '../../contract/memory-role.js';
import { native } from '../../native/binding.js';

/** Chunks between two looks at the messages: 32 MiB, some ten milliseconds. */
const SLICE_CHUNKS = 512;

/** Serves one image until it is told to stop. */
export const serveMemory = (port: MessagePort): Promise<void> =>
  new Promise((resolve) => {
    let stopped = false;
    const stats = { filled: 0, bytes: 0 };
    const server: MemoryServer = {
      populate: async ({ states, source, layers, memfd }) => {
        try {
          for (let first = 0; first < states.length && !stopped; first += SLICE_CHUNKS) {
            const count = Math.min(SLICE_CHUNKS, states.length - first);
            const { filled, bytes } = native.sourceFill(source, states, first, count, memfd);
            stats.filled += filled;
            stats.bytes += bytes;
            // All of it was taken by another server: nothing took time, so nobody has been waiting.
            if (filled > 0) await nextTurn();
          }
          return { ok: true };
        } catch (error) {
          return { ok: false, error: ForkdError.from(damageOf(error, layers)).toData() };
        }
      },
      stats: () => ({ ...stats }),
      stop: () => {
        stopped = true;
        // After this turn, so that comlink can still send the answer.
        setImmediate(() => {
          port.close();
          resolve();
        });
      },
    };
    expose(server, nodeEndpoint(port));
  });
