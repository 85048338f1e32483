/** Downloads of blobs. */
import type { ForkdError } from '../../contract/errors.js';
import { download, type DownloadHooks, type Part } from '../../http/download.js';
import { type Descriptor, hexOf } from '../oci/image.js';
import type { Registry } from './client.js';

/** Into `part`, which goes on where it stopped. The content is not held to its digest. Throws what `download` and `call` throw. */
export const downloadBlob = async (
  registry: Registry,
  { digest, size }: Pick<Descriptor, 'digest' | 'size'>,
  part: Part,
  hooks: DownloadHooks,
): Promise<void> => {
  const url = registry.url(`blobs/sha256:${hexOf(digest)}`);
  for (let renewed = false; part.bytes < size; ) {
    const { authorization } = registry;
    const request = { url, bytes: size, maxBytes: size, immutable: true };
    try {
      await download(
        registry.http,
        { ...request, ...(authorization === undefined ? {} : { authorization }) },
        part,
        hooks,
      );
      return;
    } catch (error) {
      const { code, details } = error as ForkdError;
      const status = code === 'HUB_ANSWERED' ? Number(details['status']) : 0;
      if (status === 401 && !renewed) {
        // Tokens live for minutes, downloads may take longer.
        renewed = true;
        await registry.renew(hooks.signal);
        continue;
      }
      throw status === 0 ? error : registry.failure(url, status, Buffer.alloc(0));
    }
  }
};
