/** Is it a pack of version 1 or 2? These are one zstd stream, and only their manifest says what they are. */
import { limits } from '../../../contract/limits.js';
import { fileParts } from '../../file-parts.js';
import { unzstd } from '../../zstd.js';
import { PACK_MANIFEST } from '../format.js';
import { TarReader } from '../tar-reader.js';
import type { PlainVersion } from './manifest.js';
import { decodePlainHeader } from './tar.js';

/** By a look at the text of the manifest, with which `content` begins: nothing that a stranger wrote is parsed yet. Undefined also for what is no pack at all. */
export const plainVersion = async (content: AsyncGenerator<Buffer>): Promise<PlainVersion | undefined> => {
  try {
    const tar = new TarReader(content, decodePlainHeader);
    const header = await tar.next();
    if (header?.name !== PACK_MANIFEST || header.size > limits.packManifestMaxBytes) return undefined;
    let text = '';
    for await (const part of tar.body(header.size)) text += part.toString('latin1');
    const version = /^forkd_pack_version\s*=\s*([12])\s*$/m.exec(text)?.[1];
    return version === undefined ? undefined : (Number(version) as PlainVersion);
  } catch {
    return undefined;
  } finally {
    await content.return(undefined);
  }
};

/** What is in the stream, from its beginning. It has a descriptor of its own, until it is read to its end or returned. */
export const contentOf = (fd: number, partBytes?: number): AsyncGenerator<Buffer> =>
  unzstd(fileParts(`/proc/self/fd/${fd}`, undefined, partBytes));
