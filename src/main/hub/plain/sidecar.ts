/** The root disk of a pack of version 1 or 2: a file of its own, named by its content, so that packs of one image share it. */
import { createHash } from 'node:crypto';
import { closeSync, createReadStream, openSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { ForkdError } from '../../../contract/errors.js';
import type { FileDigest } from '../../../contract/snapshot.js';
import { fileParts } from '../../file-parts.js';
import { HalfFile } from '../../store/half-file.js';
import type { Undo } from '../../undo.js';
import { unzstd } from '../../zstd.js';
import { type FrameHooks, writeFrames } from '../frames.js';
import { SparseFile } from '../../sparse-file.js';

/** Finds the file of this name; what is returned must be closed. Undefined when there is none. */
export type SidecarSource = (name: string) => Promise<Sidecar | undefined>;

export interface Sidecar {
  path: string;
  close: () => void;
}

export interface DiskFacts {
  sha256: string;
  size: number;
}

export const sidecarName = (sha256: string): string => `${sha256.slice(0, 16)}.rootfs.zst`;

/** Where one is looked for unless another place is named. */
export const besidePack =
  (packPath: string): SidecarSource =>
  async (name) => {
    const path = join(dirname(packPath), name);
    return isFile(path) ? { path, close: () => undefined } : undefined;
  };

/** A pipe of that name would be waited for without end. */
const isFile = (path: string): boolean => statSync(path, { throwIfNoEntry: false })?.isFile() ?? false;

/** The disk in one, part by part. Throws an Error when it is damaged, or at its end when it is not the disk of these facts. */
async function* contentOf(path: string, { sha256, size }: DiskFacts, signal?: AbortSignal): AsyncGenerator<Buffer> {
  const hash = createHash('sha256');
  let bytes = 0;
  for await (const part of unzstd(createReadStream(path, { highWaterMark: READ_BYTES }))) {
    signal?.throwIfAborted();
    bytes += part.length;
    if (bytes > size) throw new Error(`${sidecarName(sha256)} holds more than its pack says`);
    hash.update(part);
    yield part;
  }
  if (bytes !== size || hash.digest('hex') !== sha256)
    throw new Error(`${sidecarName(sha256)} is not the root disk that its pack names`);
}

const READ_BYTES = 256 * 1024;

/** Decompresses one into a new file, zeros as holes. Throws as `contentOf` does. */
export const readSidecar = async (
  path: string,
  facts: DiskFacts,
  into: number,
  { signal, onProgress }: FrameHooks,
): Promise<void> => {
  const file = new SparseFile(into);
  for await (const part of contentOf(path, facts, signal)) {
    file.write(part);
    onProgress?.(file.bytes);
  }
  file.end();
};

/** One that appears when it is published, unless it is there already. */
export interface WrittenSidecar {
  path: string;
  facts: DiskFacts;
  publish: () => void;
}

/**
 * Writes the sidecar of a disk beside a pack, unless a right one is there: only with a whole pack it is to appear.
 * Throws SNAPSHOT_INCOMPATIBLE when the disk is another meanwhile.
 */
export const writeSidecar = async (
  storeRoot: string,
  packPath: string,
  tag: string,
  disk: FileDigest,
  undo: Undo,
  hooks: FrameHooks,
): Promise<WrittenSidecar> => {
  const hash = createHash('sha256');
  for await (const part of fileParts(disk.path)) {
    hooks.signal?.throwIfAborted();
    hash.update(part);
  }
  const facts = { sha256: hash.digest('hex'), size: statSync(disk.path).size };
  if (facts.size !== disk.bytes)
    throw new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag, reason: `its disk ${disk.path} is another` });
  const path = join(dirname(packPath), sidecarName(facts.sha256));
  if (await isRight(path, facts, hooks.signal)) return { path, facts, publish: () => undefined };
  const half = HalfFile.of(storeRoot, path);
  undo.push(() => half.close());
  await compressTo(half.path, disk, hooks);
  return { path, facts, publish: () => half.publish() };
};

/** One of an earlier pack may be there; half of one would not do. */
const isRight = async (path: string, facts: DiskFacts, signal: AbortSignal | undefined): Promise<boolean> => {
  if (!isFile(path)) return false;
  try {
    for await (const _ of contentOf(path, facts, signal));
    return true;
  } catch (error) {
    if (signal?.aborted) throw error;
    return false;
  }
};

const compressTo = async (path: string, disk: FileDigest, hooks: FrameHooks): Promise<void> => {
  const from = openSync(disk.path, 'r');
  try {
    const into = openSync(path, 'wx');
    try {
      // The table that lets a reader seek is left out: nobody seeks here.
      await writeFrames([{ fd: from, size: disk.bytes }], into, hooks);
    } finally {
      closeSync(into);
    }
  } finally {
    closeSync(from);
  }
};
