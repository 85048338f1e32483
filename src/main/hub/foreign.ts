/** Packs of other makers: one zstd stream. Only their version is looked at, to say what they are. */
import { createReadStream } from 'node:fs';
import { DecompressStream } from 'zstd-napi';
import { limits } from '../../contract/limits.js';
import { PACK_MANIFEST, readPackManifest } from './format.js';
import { TarReader } from './tar-reader.js';

/** Throws PACK_UNREADABLE when a manifest of a pack is there, with another version. */
export const readForeign = async (path: string): Promise<void> => {
  const input = createReadStream(path);
  const zstd = new DecompressStream();
  input.on('error', (error) => zstd.destroy(error));
  try {
    const tar = new TarReader(input.pipe(zstd) as AsyncIterable<Buffer>);
    const header = await tar.next();
    if (header?.name !== PACK_MANIFEST || header.size > limits.packManifestMaxBytes) return;
    const parts: Buffer[] = [];
    for await (const part of tar.body(header.size)) parts.push(part);
    readPackManifest(path, Buffer.concat(parts));
  } catch (error) {
    if ((error as { code?: string }).code === 'PACK_UNREADABLE') throw error;
  } finally {
    input.destroy();
    zstd.destroy();
  }
};
