/** Manifests and small documents of a repository, each held to its digest. */
import { limits } from '../../contract/limits.js';
import { refused } from '../../http/client.js';
import { type Descriptor, type Fetch, hexOf, parseObject, sha256Of } from '../oci/image.js';
import type { Registry } from './client.js';

const MANIFESTS = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
].join(', ');

const small = (signal?: AbortSignal) => ({
  maxBytes: limits.imageJsonMaxBytes,
  ...(signal ? { signal } : {}),
});

export interface Found {
  digest: string;
  manifest: Record<string, unknown>;
}

/** What the reference names: by its digest when it has one, else what its tag is now. Throws what `call` throws, TRANSFER_REFUSED, an Error. */
export const findManifest = async (registry: Registry, signal?: AbortSignal): Promise<Found> => {
  const { digest, tag = 'latest' } = registry.reference;
  const url = registry.url(`manifests/${digest ?? tag}`);
  const { body, headers } = await registry.call(url, { ...small(signal), headers: { accept: MANIFESTS } });
  const actual = `sha256:${sha256Of(body)}`;
  const said = digest ?? headers['docker-content-digest'];
  if (typeof said === 'string' && said.startsWith('sha256:') && said !== actual)
    throw refused(url, `what came for ${said} has the digest ${actual}`);
  return { digest: actual, manifest: parseObject(body, 'its manifest') };
};

export const manifestFetch =
  (registry: Registry, signal?: AbortSignal): Fetch =>
  async ({ digest }: Descriptor) =>
    (
      await registry.call(registry.url(`manifests/sha256:${hexOf(digest)}`), {
        ...small(signal),
        headers: { accept: MANIFESTS },
      })
    ).body;

export const blobFetch =
  (registry: Registry, signal?: AbortSignal): Fetch =>
  async ({ digest }: Descriptor) =>
    (await registry.call(registry.url(`blobs/sha256:${hexOf(digest)}`), small(signal))).body;
