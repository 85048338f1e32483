/**
 * A loaded memory image: one memfd that every child maps private, and the page map that says which of its chunks are there.
 * Its layers are read by the worker pool, each chunk once.
 */
import { CHUNK_BYTES, PageMap } from '../../contract/page-map.js';
import { ForkdError } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import type { Pool } from '../pool.js';
import type { MemorySource } from './source.js';
import { withMemoryServer } from './server.js';

const PROGRESS_MS = 100;

export type LoadProgress = (loadedBytes: number, totalBytes: number) => void;

export class MemoryImage {
  private constructor(
    readonly memfd: number,
    readonly pages: PageMap,
    readonly bytes: number,
  ) {}

  /** Room for a parent's RAM: nothing is loaded. */
  static blank(name: string, bytes: number): number {
    const memfd = native.memfdCreate(name);
    try {
      native.fdResize(memfd, bytes);
      return memfd;
    } catch (error) {
      native.fdClose(memfd);
      throw error;
    }
  }

  /**
   * Loads all of the source into a memfd and seals it: no child, however it misbehaves, can change what the others see.
   * Throws SNAPSHOT_CORRUPT, and ENOMEM/EIO errors of the system calls.
   */
  static async load(
    name: string,
    source: MemorySource,
    pool: Pool,
    options: { hugePages?: boolean; onProgress?: LoadProgress } = {},
  ): Promise<MemoryImage> {
    const bytes = source.info.imageBytes;
    const memfd = native.memfdCreate(name, options.hugePages ?? false);
    try {
      native.fdResize(memfd, bytes);
      const pages = PageMap.create(bytes);
      await fill(pages, source, memfd, pool, options.onProgress);
      native.memfdSeal(memfd, ['grow', 'shrink', 'future_write', 'seal']);
      return new MemoryImage(memfd, pages, bytes);
    } catch (error) {
      native.fdClose(memfd);
      throw error;
    }
  }

  close(): void {
    native.fdClose(this.memfd);
  }
}

const fill = async (
  pages: PageMap,
  { handle, layers }: MemorySource,
  memfd: number,
  pool: Pool,
  onProgress?: LoadProgress,
): Promise<void> => {
  const { states } = pages;
  const job = { states, source: handle, layers, memfd };
  const total = states.length * CHUNK_BYTES;
  const timer = onProgress && setInterval(() => onProgress(pages.counts().present * CHUNK_BYTES, total), PROGRESS_MS);
  const populate = () =>
    withMemoryServer(pool, async (server) => {
      const outcome = await server.populate(job);
      if (!outcome.ok) throw ForkdError.fromData(outcome.error);
    });
  try {
    // Every server is awaited, also after one failed: the descriptors are closed next.
    const outcomes = await Promise.allSettled(Array.from({ length: pool.width }, populate));
    const failed = outcomes.find((outcome) => outcome.status === 'rejected');
    if (failed) throw failed.reason;
  } finally {
    clearInterval(timer);
  }
  // A chunk that another server had claimed is settled by now; one that is not there would be read as zeros.
  const { present } = pages.counts();
  if (present !== states.length)
    throw new ForkdError('INTERNAL', { reason: `${states.length - present} chunks of the memory image are missing` });
};
