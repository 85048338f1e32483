/**
 * The fetcher: a worker that stays with one snapshot whose pack is still on another machine. It brings the pack's frames, those that
 * somebody waits for first, puts what is in them into the local files, and tells by the arrivals (native/hotfork/arrivals.h) what is here.
 * The main thread drives it over a MessagePort (comlink) and is not needed for a fault to be answered.
 */
import type { ErrorData } from './errors.js';
import type { Patience } from './patience.js';

/** Bytes of a block of the root disk: hotfork/arrivals.h. */
export const DISK_BLOCK_BYTES = 65536;

export interface RemotePack {
  url: string;
  /** Strong ETag of the pack, if its server gave one. */
  validator?: string;
  /** Of the pack. */
  bytes: number;
  /** Pairs: bytes of each frame as it is stored, and unpacked. */
  frames: number[];
  /** Quadruples: bytes [at, at + count) of the unpacked pack are those of file f from an offset on: [at, count, f, offset]. */
  segments: number[];
}

export interface RemoteJob extends RemotePack {
  /** Descriptors of the files, open for writing; the first is the layer. */
  files: number[];
  /** A file with a byte for each frame behind `recordOffset`, 1 when it is here. */
  record: number;
  recordOffset: number;
  /** Triples: a chunk of the image, and where a frame of it lies in the layer. */
  chunks: number[];
  source: number;
  arrivals: number;
  /** The root disk: which of the files, its size, and BLAKE3 of each 64 KiB; its items begin at `firstBlock`. */
  firstBlock: number;
  disk: { file: number; bytes: number; blocks: Uint8Array };
  /** Chunks to bring first, in this order. */
  workingSet: Uint32Array;
  /** Instead of http/client.ts's own. */
  patience?: Partial<Patience>;
  /** Why something did not come: UTF-8, zero-terminated, shared. */
  problem: Uint8Array;
}

export interface RemoteStats {
  /** Fetched by this worker; of frames that are here, and of all. */
  fetched_bytes: number;
  here_bytes: number;
  bytes: number;
}

export type RemoteOutcome = { ok: true } | { ok: false; error: ErrorData };

export interface RemoteFetcher {
  /** Begins with the working set, and answers whoever asks. */
  start(job: RemoteJob): void;
  /** Brings all of it. Errors come back as data: comlink would drop their code. */
  fetchAll(): Promise<RemoteOutcome>;
  /** What had been given up is asked for again. */
  retry(): void;
  stats(): RemoteStats;
  stop(): void;
}
