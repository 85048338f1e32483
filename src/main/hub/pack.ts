/** Packs a snapshot with everything that a restore needs: its chain's layers and device states, kernel, initramfs and root disk. */
import type { KeyObject } from 'node:crypto';
import { closeSync, openSync, statSync } from 'node:fs';
import { Socket } from 'node:net';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { parseTag } from '../../contract/names.js';
import { DISK_BLOCK_BYTES } from '../../contract/remote-role.js';
import type { FileDigest } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { requireFile } from '../store/fit.js';
import { HalfFile } from '../store/half-file.js';
import { THREADS, whileAtWork } from '../native-threads.js';
import type { OpenChain } from '../store/open-chain.js';
import type { TagDir } from '../store/tag-dir.js';
import { readWorkingSet } from '../store/working-set.js';
import type { Store } from '../store/store.js';
import { Undo } from '../undo.js';
import { VERSION } from '../version.js';
import { EncryptingSink } from './age.js';
import {
  diskPath,
  linkPath,
  PACK_MANIFEST,
  PACK_VERSION,
  type PackFile,
  type PackManifest,
  writePackManifest,
} from './format.js';
import { chunksOf, firstRuns, firstRunsToBytes, HEAD_RUNS, inOrder, notFirst, totalOf } from './first.js';
import { CUT, type FrameHooks, type Piece, writeFrames } from './frames.js';
import { writePlainPack } from './plain/pack.js';
import { runsToBytes, sharedParts } from './shared-pages.js';
import { PACK_SIGNATURE, signManifest } from './signature.js';
import { Sink } from './sink.js';
import { END, header, padding } from './tar-writer.js';

const HASH_BYTES = 32;

export interface PackRequest {
  tag: string;
  out: string;
  description?: string;
  baseImage?: string;
  /** Private. */
  signingKey?: KeyObject;
  /** Public keys of age; given any, the pack is encrypted for them. */
  recipients?: string[];
  /** 3 unless another is named: 1 and 2 are for other tools, and neither signed nor encrypted. */
  version?: 1 | 2 | 3;
}

export interface PackHooks {
  signal?: AbortSignal;
  /** Bytes read so far, of all. */
  onProgress?: (done: number, total: number) => void;
}

export interface Packed {
  out: string;
  /** Of the pack, and of what is in it. */
  bytes: number;
  content_bytes: number;
  /** The root disk of a pack of version 1 or 2, which belongs beside it. */
  sidecar?: string;
}

type Content =
  | Buffer
  /** All of a file, with zeros in place of these parts of it: they are in a disk of the pack, or in front. */
  | { path: string; without?: [number, number][] }
  /** These parts of a file, the first `head` of which are needed to start anything at all. */
  | { path: string; parts: [number, number][]; head: number };
interface Part {
  file: PackFile;
  content: Content;
}

/**
 * The pack appears under its name when it is whole. Throws what opening the chain throws,
 * PACK_UNSUPPORTED, SNAPSHOT_INCOMPATIBLE when a disk is not the one of the snapshot, CANCELLED.
 */
export const pack = async (store: Store, request: PackRequest, hooks: PackHooks = {}): Promise<Packed> => {
  const { out, version = PACK_VERSION } = request;
  const half = HalfFile.of(store.root, out);
  try {
    const written = await half.during(async () =>
      version === PACK_VERSION
        ? { content_bytes: await writePack(store, request, half.path, hooks) }
        : ofChain(store, request.tag, hooks, (chain, undo) =>
            writePlainPack(store.root, chain, { ...request, version }, half.path, undo, hooks),
          ),
    );
    half.publish();
    return { out, bytes: statSync(out).size, ...written };
  } finally {
    half.close();
  }
};

/** Writes a new file of version 3 and leaves what becomes of it, and of half of it, to the caller. Returns the bytes that are in it. */
export const writePack = (
  store: Store,
  request: Omit<PackRequest, 'out'>,
  path: string,
  hooks: PackHooks = {},
): Promise<number> =>
  ofChain(store, request.tag, hooks, async (chain, undo) => {
    const parts = await partsOf(chain);
    const total = parts.reduce((sum, { file }) => sum + file.size, 0);
    const manifest = writePackManifest(manifestOf(chain, request, parts));
    const pieces = [...headOf(manifest, request.signingKey), ...piecesOf(parts, undo)];
    await write(path, pieces, request.recipients ?? [], {
      signal: hooks.signal,
      onProgress: (bytes) => hooks.onProgress?.(Math.min(bytes, total), total),
    });
    return total;
  });

const ofChain = async <T>(
  store: Store,
  tag: string,
  hooks: PackHooks,
  work: (chain: OpenChain, undo: Undo) => Promise<T>,
): Promise<T> => {
  const chain = store.hold(parseTag(tag));
  const undo = new Undo();
  try {
    return await work(chain, undo);
  } catch (error) {
    throw hooks.signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await undo.run();
    chain.close();
  }
};

const partsOf = async (chain: OpenChain): Promise<Part[]> => {
  const disks = chain.dirs.flatMap(({ manifest: m }) => [m.kernel, m.initrd, m.rootfs_digest]);
  const unique = uniqueDisks(disks);
  for (const disk of unique) await requireFile(chain.manifest.tag, 'disk', disk.path, disk);
  const links: Part[] = [];
  // One after the other: each uses all processors.
  for (const [i, dir] of chain.dirs.entries())
    links.push(...(await linkParts(dir, dir.openState(), chain.layers[i]?.fd as number, chain.dirs.length === 1)));
  return [...links, ...unique.map(diskPart)];
};

/** `canBeLazy`: only a snapshot without ancestors is ever started before all of it is there. */
const linkParts = async (
  { manifest: m, folder }: TagDir,
  stateFd: number,
  layerFd: number,
  canBeLazy: boolean,
): Promise<Part[]> => {
  const { tag } = m;
  if (m.volumes.length > 0) throw new ForkdError('PACK_UNSUPPORTED', { tag, reason: 'it has volumes' });
  if (m.vmstate_bytes > limits.packStateMaxBytes)
    throw new ForkdError('PACK_UNSUPPORTED', { tag, reason: 'its device state is too large' });
  const state = Buffer.alloc(m.vmstate_bytes);
  native.fdRead(stateFd, state, 0);
  const disks = uniqueDisks([m.rootfs_digest, m.kernel, m.initrd]);
  const [{ blake3: disk = '' } = {}, ...also] = disks;
  const { shared, blocks } = await searchDisks(
    layerFd,
    disks.map(({ path }) => path),
    canBeLazy,
  );
  const bytes = native.fdSize(layerFd).bytes;
  const path = `/proc/self/fd/${layerFd}`;
  const workingSet = readWorkingSet(folder, chunksOf(m.memory_bytes)) ?? new Uint32Array();
  const first = firstRuns(layerFd, workingSet);
  const runs = notFirst(shared, first, bytes);
  const pages = whole(linkPath(tag, 'memory.pages'), runsToBytes(runs));
  const root = m.memory_root;
  return [
    whole(linkPath(tag, 'snapshot.json'), Buffer.from(JSON.stringify(m))),
    whole(linkPath(tag, 'vmstate'), state),
    { ...pages, file: { ...pages.file, disk, also: also.map(({ blake3 }) => blake3) } },
    whole(linkPath(tag, 'disk.blocks'), blocks),
    whole(linkPath(tag, 'working-set'), runsToBytes(workingSet)),
    whole(linkPath(tag, 'memory.runs'), firstRunsToBytes(first)),
    {
      file: { path: linkPath(tag, 'memory.first'), size: totalOf(first), root },
      content: { path, parts: first, head: HEAD_RUNS },
    },
    {
      file: { path: linkPath(tag, 'memory.layer'), size: bytes, root },
      content: { path, without: inOrder([...first, ...sharedParts(runs)], bytes) },
    },
  ];
};

/** Which pages of the layer are in the disks, and BLAKE3 of each 64 KiB of the first if they are wanted. */
const searchDisks = async (
  layerFd: number,
  paths: string[],
  withBlocks: boolean,
): Promise<{ shared: Uint32Array; blocks: Buffer }> => {
  const disks: number[] = [];
  try {
    for (const path of paths) disks.push(openSync(path, 'r'));
    const bytes = Math.ceil(native.fdSize(disks[0] as number).bytes / DISK_BLOCK_BYTES) * HASH_BYTES;
    const isWanted = withBlocks && bytes <= limits.packBlocksMaxBytes;
    const blocks = Buffer.alloc(isWanted ? bytes : 0);
    const shared = await whileAtWork(() => native.samePages(layerFd, disks, THREADS, isWanted ? blocks : undefined));
    return { shared, blocks };
  } finally {
    for (const disk of disks) closeSync(disk);
  }
};

const uniqueDisks = (disks: FileDigest[]): FileDigest[] => [
  ...new Map(disks.map((disk) => [disk.blake3, disk])).values(),
];

const whole = (path: string, content: Buffer): Part => ({
  file: { path, size: content.length, blake3: native.blake3(content) },
  content,
});

const diskPart = ({ path, blake3, bytes }: FileDigest): Part => ({
  file: { path: diskPath(blake3), size: bytes, blake3 },
  content: { path },
});

const manifestOf = (
  { manifest: m, dirs }: OpenChain,
  request: Omit<PackRequest, 'out'>,
  parts: Part[],
): PackManifest => ({
  forkd_pack_version: PACK_VERSION,
  tag: m.tag,
  ...(request.description === undefined ? {} : { description: request.description }),
  ...(request.baseImage === undefined ? {} : { base_image: request.baseImage }),
  created_at: new Date().toISOString().replace(/\.\d+Z$/, 'Z'),
  forkd_version: VERSION,
  compatibility: {
    isolation: m.isolation,
    vmm_version: m.vmm.version,
    machine: m.vmm.machine,
    tsc_khz: m.tsc_khz,
    agent_generation: m.agent_generation,
  },
  chain: dirs.map(({ manifest }) => ({ tag: manifest.tag, memory_root: manifest.memory_root })),
  files: parts.map(({ file }) => file),
});

const write = async (path: string, pieces: Piece[], recipients: string[], hooks: FrameHooks): Promise<void> => {
  if (recipients.length > 0) return writeEncrypted(path, pieces, recipients, hooks);
  const fd = openSync(path, 'wx');
  try {
    const table = await writeFrames(pieces, fd, hooks);
    native.fdWrite(fd, table, native.fdSize(fd).bytes);
  } finally {
    closeSync(fd);
  }
};

/** Native code writes into a socket, and what comes out of it is encrypted here. */
const writeEncrypted = async (
  path: string,
  pieces: Piece[],
  recipients: string[],
  hooks: FrameHooks,
): Promise<void> => {
  const sink = new Sink(path);
  const [from, into] = native.socketPair('stream');
  const frames = new Socket({ fd: from });
  try {
    const outer = await EncryptingSink.to(sink, recipients);
    const writing = writeFrames(pieces, into, hooks).finally(() => closeSync(into));
    writing.catch(() => undefined);
    for await (const part of frames) await outer.write(part as Buffer);
    await outer.write(await writing);
    await outer.finish();
    await sink.finish();
  } finally {
    frames.destroy();
    await sink.close();
  }
};

const entry = (name: string, content: Buffer): Piece[] => [
  header(name, content.length),
  content,
  padding(content.length),
];

const headOf = (manifest: Buffer, key: KeyObject | undefined): Piece[] => [
  ...entry(PACK_MANIFEST, manifest),
  ...(key ? entry(PACK_SIGNATURE, signManifest(manifest, key)) : []),
];

const piecesOf = (parts: Part[], undo: Undo): Piece[] => [
  ...parts.flatMap(({ file, content }) => {
    if (Buffer.isBuffer(content)) return entry(file.path, content);
    const fd = openSync(content.path, 'r');
    undo.push(() => closeSync(fd));
    const pieces = 'parts' in content ? partPieces(fd, content) : [CUT, { fd, size: file.size, ...withoutOf(content) }];
    const cut = 'parts' in content ? [CUT] : [];
    return [header(file.path, file.size), ...pieces, padding(file.size), ...cut];
  }),
  END,
];

const withoutOf = ({ without }: Exclude<Content, Buffer | { parts: unknown }>) => (without ? { without } : {});

/** Header and index are wanted before the rest. */
const partPieces = (fd: number, { parts, head }: Extract<Content, { parts: unknown }>): Piece[] =>
  parts.flatMap(([from, size], i): Piece[] => [...(i === head ? [CUT] : []), { fd, from, size }]);
