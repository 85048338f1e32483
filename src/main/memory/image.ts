/**
 * A loaded memory image: one memfd that every child maps private, and the page map that says which of its chunks are there.
 * The file is read by the worker pool, each chunk once.
 */
import { closeSync, openSync } from 'node:fs';
import { CHUNK_BYTES, PageMap } from '../../contract/page-map.js';
import { native } from '../../native/binding.js';
import type { Pool } from '../pool.js';

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
   * Loads the file into a memfd and seals it: no child, however it misbehaves, can change what the others see.
   * Throws ENOMEM/EIO errors of the system calls.
   */
  static async load(
    name: string,
    path: string,
    pool: Pool,
    options: { hugePages?: boolean; onProgress?: LoadProgress } = {},
  ): Promise<MemoryImage> {
    const source = openSync(path, 'r');
    try {
      const { bytes } = native.fdSize(source);
      const memfd = native.memfdCreate(name, options.hugePages ?? false);
      try {
        native.fdResize(memfd, bytes);
        const pages = PageMap.create(bytes);
        await fill(pages, source, memfd, pool, options.onProgress);
        native.memfdSeal(memfd, ['grow', 'shrink', 'future_write', 'seal']);
        return new MemoryImage(memfd, pages, bytes);
      } catch (error) {
        closeSync(memfd);
        throw error;
      }
    } finally {
      closeSync(source);
    }
  }

  close(): void {
    closeSync(this.memfd);
  }
}

/** Ranges a worker: enough that they end together, large enough that a task costs nothing beside its work. */
const CHUNKS_PER_TASK = 512;

const fill = async (
  pages: PageMap,
  source: number,
  memfd: number,
  pool: Pool,
  onProgress?: LoadProgress,
): Promise<void> => {
  const { states } = pages;
  const count = states.length;
  let next = 0;
  let done = 0;
  const lane = async () => {
    while (next < count) {
      const first = next;
      const n = Math.min(CHUNKS_PER_TASK, count - first);
      next += n;
      await pool.run('load', { map: states, first, count: n, chunkBytes: CHUNK_BYTES, source, memfd });
      done += n;
      onProgress?.(done * CHUNK_BYTES, count * CHUNK_BYTES);
    }
  };
  // Every lane is awaited, also after one failed: the descriptors are closed next.
  const lanes = await Promise.allSettled(Array.from({ length: pool.width }, lane));
  const failed = lanes.find((l) => l.status === 'rejected');
  if (failed) throw failed.reason;
};
