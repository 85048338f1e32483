/** Unpacks a pack of any version, or takes only its root disk. What is in it is believed by what its manifest says, and nothing else. */
import { type KeyObject, randomBytes } from 'node:crypto';
import { closeSync, mkdirSync, openSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { native } from '../../native/binding.js';
import { fileParts } from '../file-parts.js';
import { HalfFile } from '../store/half-file.js';
import type { Store } from '../store/store.js';
import { Undo } from '../undo.js';
import { decrypted, isEncrypted } from './age.js';
import { invalid } from './format.js';
import { FrameFile } from './frames.js';
import type { PackHooks } from './pack.js';
import { takePlainDisk, unpackPlain } from './plain/unpack.js';
import type { SidecarSource } from './plain/sidecar.js';
import { contentOf, plainVersion } from './plain/version.js';
import type { Arrived, ChainRequest } from './staged-chain.js';
import { takeFramedDisk } from './take-framed-disk.js';
import { unpackFrames } from './unpack-frames.js';

export interface OpenRequest {
  path: string;
  /** Public keys; given any, the pack must be signed by one of them. */
  trusted?: KeyObject[];
  /** Secret keys of age, for a pack that is encrypted. */
  identities?: string[];
  /** Where the root disk of a pack of versions 1 and 2 is; beside the pack, when left out. */
  sidecar?: SidecarSource;
}

export type UnpackRequest = OpenRequest & ChainRequest;
export type Unpacked = Arrived;

/**
 * Throws PACK_INVALID, PACK_UNREADABLE, PACK_OTHER_ENGINE, PACK_UNTRUSTED, PACK_ENCRYPTED, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, SNAPSHOT_HAS_DEPENDENTS,
 * DISK_FULL, CANCELLED; then the store is as it was.
 */
export const unpack = (store: Store, request: UnpackRequest, hooks: PackHooks = {}): Promise<Unpacked> =>
  withPack(store, request, hooks, (pack, undo) =>
    'plain' in pack
      ? unpackPlain(store, request, pack.plain, undo, hooks)
      : unpackFrames(store, request, pack.frames, undo, hooks),
  );

export interface TakenDisk {
  /** The file. */
  disk: string;
  disk_bytes: number;
}

/** Writes only the root disk of the pack into a file, after checking it. It needs no engine that could run the rest. Throws as `unpack` does. */
export const takeDisk = async (
  store: Store,
  request: OpenRequest & { disk: string },
  hooks: PackHooks = {},
): Promise<TakenDisk> => {
  const half = HalfFile.of(store.root, request.disk);
  try {
    const disk_bytes = await withPack(store, request, hooks, async (pack, undo) => {
      const into = openSync(half.path, 'wx+', 0o644);
      undo.push(() => closeSync(into));
      return half.during(() =>
        'plain' in pack
          ? takePlainDisk(request, pack.plain, into, undo, hooks)
          : takeFramedDisk(request, pack.frames, into, hooks),
      );
    });
    half.publish();
    return { disk: request.disk, disk_bytes };
  } finally {
    half.close();
  }
};

/** Of version 1 or 2, by its descriptor; or in frames. */
type Pack = { plain: number } | { frames: FrameFile };
type Work<T> = (pack: Pack, undo: Undo) => Promise<T>;

const withPack = async <T>(store: Store, request: OpenRequest, hooks: PackHooks, work: Work<T>): Promise<T> => {
  const { path, trusted = [] } = request;
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) throw invalid(path, 'there is no such file');
  const undo = new Undo();
  try {
    const fd = isEncrypted(path) ? await openDecrypted(store, request, hooks.signal) : openSync(path, 'r');
    undo.push(() => closeSync(fd));
    const frames = framesIn(fd);
    const version = await plainVersion(frames ? frames.contents() : contentOf(fd, LOOK_BYTES));
    if (version !== undefined && trusted.length > 0)
      throw new ForkdError('PACK_UNTRUSTED', { path, reason: `it is of version ${version}, which has no signatures` });
    return await work(version === undefined ? { frames: frames ?? FrameFile.of(fd) } : { plain: fd }, undo);
  } catch (error) {
    if (hooks.signal?.aborted) throw new ForkdError('CANCELLED');
    throw error instanceof ForkdError || isOfTheSystem(error) ? error : invalid(path, reasonOf(error), error);
  } finally {
    await undo.run();
  }
};

/** Read at a time for the version, which the first of them tells as a rule. */
const LOOK_BYTES = 64 * 1024;

/** Undefined when it does not end as frames do: it is of another version, or damaged. */
const framesIn = (fd: number): FrameFile | undefined => {
  try {
    return FrameFile.of(fd);
  } catch {
    return undefined;
  }
};

/** The content of an encrypted pack, in a file without a name: what is read here and there must be somewhere. */
const openDecrypted = async (
  store: Store,
  { path, identities = [] }: OpenRequest,
  signal: AbortSignal | undefined,
): Promise<number> => {
  const content = await decrypted(path, ownParts(path), identities);
  mkdirSync(store.root, { recursive: true });
  const name = join(store.root, `.decrypted-${randomBytes(6).toString('hex')}`);
  const fd = openSync(name, 'wx+', 0o600);
  rmSync(name);
  try {
    let at = 0;
    for await (const part of content) {
      signal?.throwIfAborted();
      at += native.fdWrite(fd, part, at);
    }
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
};

/** The cipher asks for several before it has come to the first. */
async function* ownParts(path: string): AsyncGenerator<Buffer> {
  for await (const part of fileParts(path)) yield Buffer.from(part);
}

const isOfTheSystem = (error: unknown): boolean => typeof (error as NodeJS.ErrnoException).syscall === 'string';
