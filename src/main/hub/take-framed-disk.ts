/** The root disk of a pack of version 3, without the rest of it. */
import { MANIFEST_FILE, type SnapshotManifest } from '../../contract/snapshot.js';
import { native } from '../../native/binding.js';
import { diskPath, linkPath, type PackFile } from './format.js';
import type { FrameFile } from './frames.js';
import { Layout } from './layout.js';
import type { PackHooks } from './pack.js';
import type { OpenRequest } from './unpack.js';
import { decodeHeader, TarReader } from './tar-reader.js';
import { readHead, requireSize } from './unpack-frames.js';

/** Writes it into a new file, and returns its bytes. Throws PACK_INVALID, PACK_UNREADABLE, PACK_UNTRUSTED; an Error with the reason for what is damaged. */
export const takeFramedDisk = async (
  request: OpenRequest,
  frames: FrameFile,
  into: number,
  hooks: PackHooks,
): Promise<number> => {
  const { manifest, manifestBytes, isSigned } = await readHead(request, new TarReader(frames.contents(), decodeHeader));
  requireSize(request.path, manifest, native.fdSize(frames.fd).bytes);
  const layout = new Layout(manifest, manifestBytes, isSigned);
  layout.gaps(frames.contentBytes);
  const entryOf = (path: string): PackFile => {
    const found = manifest.files.find((file) => file.path === path);
    if (!found) throw new Error(`${path} is not in it`);
    return found;
  };
  const described = entryOf(linkPath(manifest.tag, MANIFEST_FILE));
  const text = await frames.read(layout.body(described.path), described.size);
  if (native.blake3(text) !== described.blake3)
    throw new Error(`${described.path} has another hash than its manifest says`);
  const said = JSON.parse(text.toString()) as Partial<SnapshotManifest> | null;
  const { path, size, blake3 } = entryOf(diskPath(String(said?.rootfs_digest?.blake3)));
  const begin = layout.body(path);
  native.fdResize(into, size);
  const progress = { ...hooks, onProgress: (done: number) => hooks.onProgress?.(Math.min(done, size), size) };
  const [digest] = await frames.place([[begin, size, into, 0]], Buffer.alloc(0), begin, [[begin, size]], progress);
  if (digest !== blake3) throw new Error(`${path} has another hash than its manifest says`);
  return size;
};
