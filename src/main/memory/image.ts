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
/** Times that others take over from servers that died: more is no accident. */
const RELAYS_MAX = 3;

/** What a loaded snapshot's memory is to everybody else, loaded already or not yet. */
export interface GuestMemory {
  /** What VMMs map, private. */
  readonly memfd: number;
  readonly bytes: number;
  /** The fault server that a VMM must be handed over to before it touches the memory; undefined when all of it is there. */
  readonly server: number | undefined;
  /** Settles when all of it is there, for VMMs that no server knows. Throws SNAPSHOT_CORRUPT. */
  complete(): Promise<void>;
  /** From now on the host's idle time goes into loading what nobody has touched yet. */
  populate(): void;
  /** Before children are forked from what maps it. Throws SNAPSHOT_CORRUPT when a part is known that cannot be loaded. */
  beforeFork(): Promise<void>;
  /** Processes that map it live on, and find all of it. */
  close(): void;
}

export type LoadProgress = (loadedBytes: number, totalBytes: number) => void;

export class MemoryImage implements GuestMemory {
  readonly server = undefined;

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
   * Throws SNAPSHOT_CORRUPT, WORKER_DIED when servers die again and again, and ENOMEM/EIO errors of the system calls.
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

  async complete(): Promise<void> {}

  populate(): void {}

  async beforeFork(): Promise<void> {}

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
    for (let relays = 0; pages.counts().present < states.length; relays++) {
      // Every server is awaited, also after one failed: no chunk is claimed by anybody then, and the descriptors may be closed.
      const outcomes = await Promise.allSettled(Array.from({ length: pool.width }, populate));
      const failures = outcomes.flatMap((outcome) => (outcome.status === 'rejected' ? [outcome.reason] : []));
      const fatal = failures.find((reason) => !isDeath(reason)) ?? (relays < RELAYS_MAX ? undefined : failures[0]);
      if (fatal) throw fatal;
      // What is not there would be read as zeros. What a server that died has left, others load.
      const missing = states.length - pages.counts().present;
      if (missing > 0 && failures.length === 0)
        throw new ForkdError('INTERNAL', { reason: `${missing} chunks of the memory image are missing` });
    }
  } finally {
    clearInterval(timer);
  }
};

const isDeath = (error: unknown): boolean => error instanceof ForkdError && error.code === 'WORKER_DIED';
