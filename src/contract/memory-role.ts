/**
 * The memory server: a worker that stays with one memory image for as long as it is being filled. The main thread drives
 * it over a MessagePort (comlink); the page map says what is there, so any number of them may fill the same image.
 */
import type { ErrorData } from './errors.js';
import type { LayerName } from './layer-damage.js';

export interface MemoryJob {
  /** The page map's states, shared. */
  states: Int32Array;
  /** Handle of the layers that it comes from, and their names for errors. */
  source: number;
  layers: LayerName[];
  memfd: number;
}

export interface MemoryStats {
  /** Chunks that this server filled, and bytes that it wrote. */
  filled: number;
  bytes: number;
}

export interface MemoryServer {
  /** Fills every chunk that nobody else has taken. Errors come back as data: comlink would drop their code. */
  populate(job: MemoryJob): Promise<{ ok: true } | { ok: false; error: ErrorData }>;
  stats(): MemoryStats;
  /** Ends the worker's task. What is being filled is finished first. */
  stop(): void;
}
