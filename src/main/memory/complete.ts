/** Brings the rest of a tag that was pulled with --lazy, for those who need all of it. */
import { closeSync, openSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import type { Patience } from '../../contract/patience.js';
import type { Pool } from '../pool.js';
import type { Store } from '../store/store.js';
import { RemoteSnapshot } from './remote.js';
import { MemorySource } from './source.js';

export interface CompleteHooks {
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
  patience?: Partial<Patience>;
}

const PROGRESS_MS = 100;

/** Nothing happens to one that is whole. Throws what RemoteSnapshot.finish throws, CANCELLED. */
export const completeSnapshot = async (
  store: Store,
  tag: string,
  pool: Pool,
  { signal, onProgress, patience }: CompleteHooks = {},
): Promise<void> => {
  if (!store.isPartial(tag)) return;
  const chain = store.hold(tag, { partial: true });
  const source = MemorySource.open(chain.layers);
  const disk = openSync(chain.manifest.rootfs, 'r');
  const remote = RemoteSnapshot.open(chain, source, disk, pool, new Uint32Array(), patience);
  const show = async (): Promise<void> => {
    const { here_bytes, bytes } = await remote.stats();
    onProgress?.(here_bytes, bytes);
  };
  const timer = setInterval(() => void show().catch(() => undefined), PROGRESS_MS);
  try {
    const cancelled = new Promise<never>((_, reject) => {
      signal?.addEventListener('abort', () => reject(new ForkdError('CANCELLED')), { once: true });
      if (signal?.aborted) reject(new ForkdError('CANCELLED'));
    });
    await Promise.race([remote.finish(), cancelled]);
  } finally {
    clearInterval(timer);
    await remote.close();
    source.close();
    closeSync(disk);
    chain.close();
  }
};
