/**
 * Writes a pack of version 1 or 2, as the first tool of this name does: whole memory images, SHA-256, the root disk in a file beside it. What is ours
 * (kernel, initramfs, QEMU's device state) is declared like everything else. Its manifest comes first and has the hashes of all that follows: room is left for
 * it, so that everything is read once.
 */
import { createHash } from 'node:crypto';
import { closeSync, openSync } from 'node:fs';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setImmediate as others } from 'node:timers/promises';
import { ForkdError } from '../../../contract/errors.js';
import { CHUNK_BYTES } from '../../../contract/page-map.js';
import { type FileDigest, MANIFEST_FILE, type SnapshotManifest, STATE_FILE } from '../../../contract/snapshot.js';
import { native } from '../../../native/binding.js';
import { fileParts } from '../../file-parts.js';
import { damageOf } from '../../../contract/layer-damage.js';
import { MemorySource } from '../../memory/source.js';
import { THREADS } from '../../native-threads.js';
import { requireFile } from '../../store/fit.js';
import type { OpenChain } from '../../store/open-chain.js';
import type { Undo } from '../../undo.js';
import { VERSION } from '../../version.js';
import { PACK_MANIFEST } from '../format.js';
import type { PackHooks, PackRequest } from '../pack.js';
import { Sink } from '../sink.js';
import { END, header, padding } from '../tar-writer.js';
import {
  entryName,
  fileOf,
  MEMORY_IMAGE,
  type PlainFile,
  type PlainFileName,
  type PlainLink,
  type PlainManifest,
  type PlainVersion,
  writePlainManifest,
} from './manifest.js';
import { rawFrame } from './raw-frame.js';
import { writeSidecar } from './sidecar.js';

/** zstd's own default, as the packs of these versions have. */
const LEVEL = 3;
const PART_BYTES = 64 * CHUNK_BYTES;
const NO_HASH = '0'.repeat(64);

export interface PlainRequest extends Pick<PackRequest, 'tag' | 'out' | 'description' | 'baseImage'> {
  version: PlainVersion;
}

/** A file of the archive that is still to be read. `text` may depend on the hashes of those before it. */
interface Source {
  link: PlainLink;
  file: PlainFile;
  parts: () => AsyncIterable<Buffer>;
}

/**
 * Writes a new file at `path`, which becomes `request.out`, and the sidecar beside that. Returns the bytes that are in both, and where the sidecar is.
 * Throws PACK_UNSUPPORTED, SNAPSHOT_INCOMPATIBLE, SNAPSHOT_CORRUPT, CANCELLED.
 */
export const writePlainPack = async (
  storeRoot: string,
  chain: OpenChain,
  request: PlainRequest,
  path: string,
  undo: Undo,
  hooks: PackHooks,
): Promise<{ content_bytes: number; sidecar: string }> => {
  requirePlain(chain, request);
  const { rootfs_digest: disk, tag } = chain.manifest;
  for (const { manifest: m } of chain.dirs)
    for (const file of [m.kernel, m.initrd, m.rootfs_digest]) await requireFile(m.tag, 'disk', file.path, file);
  const sources: Source[] = [];
  const links: PlainLink[] = [];
  for (const i of chain.dirs.keys()) addLink(chain, i, links, sources);
  const total = sources.reduce((sum, { file }) => sum + file.size, 0) + disk.bytes;
  const onProgress = (done: number): void => hooks.onProgress?.(Math.min(done, total), total);
  const sidecar = await writeSidecar(storeRoot, request.out, tag, disk, undo, { signal: hooks.signal, onProgress });
  const manifest = manifestOf(request, links, { target_path: disk.path, ...sidecar.facts });
  await writeArchive(path, manifest, sources, hooks.signal, (done) => onProgress(disk.bytes + done));
  sidecar.publish();
  return { content_bytes: total, sidecar: sidecar.path };
};

const requirePlain = ({ dirs, manifest }: OpenChain, { version }: PlainRequest): void => {
  const { tag } = manifest;
  const unsupported = (reason: string) => new ForkdError('PACK_UNSUPPORTED', { tag, reason });
  if (version === 1 && dirs.length > 1)
    throw unsupported('it has ancestors, for which only versions 2 and 3 have a place');
  for (const { manifest: m } of dirs) {
    if (m.volumes.length > 0) throw unsupported('it has volumes');
    if (m.rootfs_digest.blake3 !== manifest.rootfs_digest.blake3)
      throw unsupported('its chain has several root disks, and versions 1 and 2 name one');
  }
};

/** The files of one link, in the order of the archive. */
const addLink = ({ dirs, layers }: OpenChain, i: number, links: PlainLink[], sources: Source[]): void => {
  const dir = dirs[i] as OpenChain['dirs'][number];
  const { manifest: m } = dir;
  const parent = links[i - 1];
  const link: PlainLink = { tag: m.tag, files: [] };
  if (parent) Object.assign(link, { parent_tag: parent.tag, parent_content_hash: NO_HASH });
  links.push(link);
  const add = (path: PlainFileName, size: number, parts: Source['parts']): void => {
    const file = { path, size, sha256: NO_HASH };
    link.files.push(file);
    sources.push({ link, file, parts });
  };
  const text = (): Buffer => {
    // Its parent's image has been read by now.
    if (parent) link.parent_content_hash = (fileOf(parent, MEMORY_IMAGE) as PlainFile).sha256;
    return Buffer.from(`${JSON.stringify(described(m, link), null, 2)}\n`);
  };
  add(MANIFEST_FILE, text().length, () => Readable.from([text()]));
  const state = dir.openState();
  add(STATE_FILE, m.vmstate_bytes, () => fileParts(`/proc/self/fd/${state}`));
  // The links of a chain share them mostly.
  const before = dirs[i - 1]?.manifest;
  const disk = (name: 'kernel' | 'initrd'): void => {
    const { path, bytes, blake3 }: FileDigest = m[name];
    if (before?.[name].blake3 !== blake3) add(name, bytes, () => fileParts(path));
  };
  disk('kernel');
  disk('initrd');
  add(MEMORY_IMAGE, m.memory_bytes, () => imageOf(layers.slice(0, i + 1)));
};

/** Its paths are those that its files have where it is, and the parent's hash is that of a whole image. */
const described = (m: SnapshotManifest, { parent_content_hash }: PlainLink): SnapshotManifest => ({
  ...m,
  memory: m.memory.replace(/[^/]+$/, MEMORY_IMAGE),
  ...(parent_content_hash === undefined ? {} : { parent_content_hash }),
});

/** All of an image, each chunk verified. Open no longer than it is read: each link has a table of all below it. Throws SNAPSHOT_CORRUPT. */
async function* imageOf(files: OpenChain['layers']): AsyncGenerator<Buffer> {
  const memory = MemorySource.open(files);
  const { handle, info, layers } = memory;
  try {
    for (let at = 0; at < info.imageBytes; at += PART_BYTES) {
      const part = Buffer.alloc(PART_BYTES);
      const bytes = Math.min(PART_BYTES, info.imageBytes - at);
      for (let from = 0; from < bytes; from += CHUNK_BYTES)
        native.sourceRead(handle, (at + from) / CHUNK_BYTES, part.subarray(from, from + CHUNK_BYTES));
      // Zeros become so little that nothing waits for the disk: signals get their turn here.
      await others();
      yield part.subarray(0, bytes);
    }
  } catch (error) {
    throw damageOf(error, layers);
  } finally {
    memory.close();
  }
}

const manifestOf = (
  { version, tag, description, baseImage }: PlainRequest,
  links: PlainLink[],
  rootfs: PlainManifest['rootfs'] & object,
): PlainManifest => {
  const head = links.at(-1) as PlainLink;
  return {
    forkd_pack_version: version,
    tag,
    ...(description === undefined ? {} : { description }),
    ...(baseImage === undefined ? {} : { base_image: baseImage }),
    created_at: new Date().toISOString().replace(/\.\d+Z$/, 'Z'),
    forkd_version: VERSION,
    ...(head.parent_tag === undefined ? {} : { parent_tag: head.parent_tag }),
    files: version === 1 ? head.files : [],
    ...(version === 1 ? {} : { chain: links }),
    rootfs,
  };
};

const writeArchive = async (
  path: string,
  manifest: PlainManifest,
  sources: Source[],
  signal: AbortSignal | undefined,
  onProgress: (done: number) => void,
): Promise<void> => {
  const room = headOf(manifest).length;
  const { CompressStream } = await import('zstd-napi');
  const sink = new Sink(path);
  try {
    await sink.write(Buffer.alloc(room));
    const zstd = new CompressStream({ compressionLevel: LEVEL, nbWorkers: THREADS, checksumFlag: true });
    const feeding = pipeline(Readable.from(contents(manifest, sources, signal, onProgress)), zstd);
    // Who reads meets the same error; what fails in writing would be hidden by the abort of the feeding.
    feeding.catch(() => undefined);
    for await (const part of zstd) await sink.write(part as Buffer);
    await feeding;
    const head = headOf(manifest);
    if (head.length !== room) throw new Error('the manifest has another size than was left for it');
    writeAt(path, head);
    await sink.finish();
  } finally {
    await sink.close();
  }
};

const headOf = (manifest: PlainManifest): Buffer => {
  const text = writePlainManifest(manifest);
  return rawFrame(Buffer.concat([header(PACK_MANIFEST, text.length), text, padding(text.length)]));
};

/** What is behind the manifest. Hashes are put into it as they are known. */
async function* contents(
  manifest: PlainManifest,
  sources: Source[],
  signal: AbortSignal | undefined,
  onProgress: (done: number) => void,
): AsyncGenerator<Buffer> {
  let done = 0;
  for (const { link, file, parts } of sources) {
    const name = entryName(manifest, link, file.path);
    yield header(name, file.size);
    const hash = createHash('sha256');
    let bytes = 0;
    for await (const part of parts()) {
      signal?.throwIfAborted();
      hash.update(part);
      bytes += part.length;
      done += part.length;
      onProgress(done);
      // A part of a file is valid until the next is asked for, and the compressor has several at once.
      yield file.path === MEMORY_IMAGE ? part : Buffer.from(part);
    }
    if (bytes !== file.size)
      throw new ForkdError('SNAPSHOT_INCOMPATIBLE', { tag: link.tag, reason: `${name} is another` });
    file.sha256 = hash.digest('hex');
    yield padding(bytes);
  }
  yield END;
}

const writeAt = (path: string, head: Buffer): void => {
  const fd = openSync(path, 'r+');
  try {
    native.fdWrite(fd, head, 0);
  } finally {
    closeSync(fd);
  }
};
