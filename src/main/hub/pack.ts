/** Packs a snapshot with everything that a restore needs: its chain's layers and device states, kernel, initramfs and root disk. */
import { createHash, type KeyObject } from 'node:crypto';
import { closeSync, openSync, statSync } from 'node:fs';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { parseTag } from '../../contract/names.js';
import type { FileDigest } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { HalfFile } from '../store/half-file.js';
import type { Pool } from '../pool.js';
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
import { chunksOf, firstRuns, firstRunsToBytes, HEAD_RUNS, inOrder, notFirst, totalOf, withoutRuns } from './first.js';
import { compressFrames } from './frames.js';
import { runsToBytes, withoutPages } from './shared-pages.js';
import { PACK_SIGNATURE, signManifest } from './signature.js';
import { Sink } from './sink.js';
import { END, header, type Piece, Pieces, padding } from './tar-writer.js';

export interface PackRequest {
  tag: string;
  out: string;
  description?: string;
  baseImage?: string;
  /** Private. */
  signingKey?: KeyObject;
  /** Public keys of age; given any, the pack is encrypted for them. */
  recipients?: string[];
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
}

type Content =
  | Buffer
  | {
      path: string;
      /** Left out: they are in a disk of the pack, */
      runs?: Uint32Array;
      /** or in front. */
      first?: [number, number][];
    }
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
export const pack = async (store: Store, request: PackRequest, pool: Pool, hooks: PackHooks = {}): Promise<Packed> => {
  const { out } = request;
  const half = HalfFile.of(store.root, out);
  try {
    const content_bytes = await writePack(store, request, half.path, pool, hooks);
    half.publish();
    return { out, bytes: statSync(out).size, content_bytes };
  } finally {
    half.close();
  }
};

/** Writes a new file and leaves what becomes of it, and of half of it, to the caller. Returns the bytes that are in it. */
export const writePack = async (
  store: Store,
  request: Omit<PackRequest, 'out'>,
  path: string,
  pool: Pool,
  hooks: PackHooks = {},
): Promise<number> => {
  const chain = store.hold(parseTag(request.tag));
  const undo = new Undo();
  try {
    const parts = await partsOf(chain, pool);
    const total = parts.reduce((sum, { file }) => sum + file.size, 0);
    const manifest = writePackManifest(manifestOf(chain, request, parts));
    const pieces = [...headOf(manifest, request.signingKey), ...piecesOf(parts, request.tag, undo)];
    await writeFrames(path, pieces, request.recipients ?? [], pool, (bytes) => {
      hooks.signal?.throwIfAborted();
      hooks.onProgress?.(Math.min(bytes, total), total);
    });
    return total;
  } catch (error) {
    throw hooks.signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await undo.run();
    chain.close();
  }
};

const partsOf = async (chain: OpenChain, pool: Pool): Promise<Part[]> => {
  const disks = chain.dirs.flatMap(({ manifest: m }) => [m.kernel, m.initrd, m.rootfs_digest]);
  const unique = [...new Map(disks.map((disk) => [disk.sha256, disk])).values()].map(diskPart);
  for (const { file, content } of unique) requireDisk(chain.manifest.tag, file, content as { path: string });
  const links = await Promise.all(
    chain.dirs.map((dir, i) =>
      linkParts(dir, dir.openState(), chain.layers[i]?.fd as number, pool, chain.dirs.length === 1),
    ),
  );
  return [...links.flat(), ...unique];
};

/** `canBeLazy`: only a snapshot without ancestors is ever started before all of it is there. */
const linkParts = async (
  { manifest: m, folder }: TagDir,
  stateFd: number,
  layerFd: number,
  pool: Pool,
  canBeLazy: boolean,
): Promise<Part[]> => {
  const { tag } = m;
  if (m.volumes.length > 0) throw new ForkdError('PACK_UNSUPPORTED', { tag, reason: 'it has volumes' });
  if (m.vmstate_bytes > limits.packStateMaxBytes)
    throw new ForkdError('PACK_UNSUPPORTED', { tag, reason: 'its device state is too large' });
  const state = Buffer.alloc(m.vmstate_bytes);
  native.fdRead(stateFd, state, 0);
  const { path: disk, sha256 } = m.rootfs_digest;
  const [shared, { blocks }] = await Promise.all([
    pool.run('sharedPages', { layerFd, diskPath: disk }),
    canBeLazy ? pool.run('diskBlocks', { path: disk }) : { blocks: Buffer.alloc(0) },
  ]);
  const bytes = native.fdSize(layerFd).bytes;
  const path = `/proc/self/fd/${layerFd}`;
  const workingSet = readWorkingSet(folder, chunksOf(m.memory_bytes)) ?? new Uint32Array();
  const first = firstRuns(layerFd, workingSet);
  const runs = notFirst(shared.runs, first, bytes);
  const pages = whole(linkPath(tag, 'memory.pages'), runsToBytes(runs));
  const root = m.memory_root;
  return [
    whole(linkPath(tag, 'snapshot.json'), Buffer.from(JSON.stringify(m))),
    whole(linkPath(tag, 'vmstate'), state),
    { ...pages, file: { ...pages.file, disk: sha256 } },
    whole(linkPath(tag, 'disk.blocks'), Buffer.from(blocks)),
    whole(linkPath(tag, 'working-set'), runsToBytes(workingSet)),
    whole(linkPath(tag, 'memory.runs'), firstRunsToBytes(first)),
    {
      file: { path: linkPath(tag, 'memory.first'), size: totalOf(first), root },
      content: { path, parts: first, head: HEAD_RUNS },
    },
    {
      file: { path: linkPath(tag, 'memory.layer'), size: bytes, root },
      content: { path, runs, first: inOrder(first, bytes) },
    },
  ];
};

const whole = (path: string, content: Buffer): Part => ({
  file: { path, size: content.length, sha256: createHash('sha256').update(content).digest('hex') },
  content,
});

const diskPart = ({ path, sha256, bytes }: FileDigest): Part => ({
  file: { path: diskPath(sha256), size: bytes, sha256 },
  content: { path },
});

const changed = (tag: string, path: string): ForkdError =>
  new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag, reason: `${path} has changed since the snapshot was made` });

const requireDisk = (tag: string, file: PackFile, { path }: { path: string }): void => {
  if (statSync(path, { throwIfNoEntry: false })?.size !== file.size) throw changed(tag, path);
};

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

const writeFrames = async (
  path: string,
  pieces: Piece[],
  recipients: string[],
  pool: Pool,
  onProgress: (bytes: number) => void,
): Promise<void> => {
  const archive = new Pieces(pieces);
  const sink = new Sink(path);
  let bytes = 0;
  try {
    const source = {
      get level() {
        return archive.level;
      },
      read: async (into: Buffer) => {
        const filled = await archive.read(into);
        bytes += filled;
        onProgress(bytes);
        return filled;
      },
    };
    const outer = recipients.length === 0 ? undefined : await EncryptingSink.to(sink, recipients);
    await compressFrames(source, outer ?? sink, pool);
    await outer?.finish();
    await sink.finish();
  } finally {
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

const piecesOf = (parts: Part[], tag: string, undo: Undo): Piece[] => [
  ...parts.flatMap(({ file, content }) => {
    if (Buffer.isBuffer(content)) return entry(file.path, content);
    const fd = openSync(content.path, 'r');
    undo.push(() => closeSync(fd));
    const pieces = 'parts' in content ? partPieces(fd, content) : [filePiece(file, content, fd, tag)];
    const cut = 'parts' in content ? [{ level: undefined }] : [];
    return [header(file.path, file.size), ...pieces, padding(file.size), ...cut];
  }),
  END,
];

/** What a fork waits for is smaller by a tenth for it. */
const FIRST_LEVEL = 3;

const partPieces = (fd: number, { parts, head }: Extract<Content, { parts: unknown }>): Piece[] =>
  parts.flatMap(([from, size], i): Piece[] => [...(i === head ? [{ level: FIRST_LEVEL }] : []), { fd, from, size }]);

/** Each file is read once, and what is read is what is hashed. */
const filePiece = (
  file: PackFile,
  { path, runs, first }: Exclude<Content, Buffer | { parts: unknown }>,
  fd: number,
  tag: string,
): Piece => {
  const hash = file.sha256 === undefined ? undefined : createHash('sha256');
  return {
    fd,
    size: file.size,
    onPart: (part, offset) => {
      hash?.update(part);
      if (runs) withoutPages(part, offset, runs);
      if (first) withoutRuns(part, offset, first);
    },
    onEnd: () => {
      if (hash && hash.digest('hex') !== file.sha256) throw changed(tag, path);
    },
  };
};
