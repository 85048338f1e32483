import type { Pool } from '../pool.js';

/** Throws TypeError when that is no answer of an agent. */
export type Judge = (payload: Uint8Array) => Promise<void>;

/** By a worker: what is large would hold up everybody else here. */
export const judgeIn =
  (pool: Pool): Judge =>
  async (payload) => {
    const { problem } = await pool.run('judge', { payload });
    if (problem !== undefined) throw new TypeError(problem);
  };
