/** Packs in OCI registries: an artifact whose layers, one behind the other, are the pack. */
import { createHash } from 'node:crypto';
import { createReadStream, statSync } from 'node:fs';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { ForkdError } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { type Http, refused, shown } from '../../http/client.js';
import type { Part } from '../../http/download.js';
import type { PartFile } from '../../http/part-file.js';
import { writePack } from '../hub/pack.js';
import { type Pulled, type PullHooks, type PullRequest, pullWith } from '../hub/pull.js';
import type { PushHooks, PushRequest } from '../hub/push.js';
import { type Descriptor, hexOf, sha256Of } from '../oci/image.js';
import { HalfFile } from '../store/half-file.js';
import type { Store } from '../store/store.js';
import { downloadBlob } from './blobs.js';
import { Registry } from './client.js';
import { findManifest } from './manifests.js';
import { parseReference, type Reference, showReference } from './reference.js';

const MANIFEST_TYPE = 'application/vnd.oci.image.manifest.v1+json';
const ARTIFACT_TYPE = 'application/vnd.forkd.snapshot.v3';
const PIECE_TYPE = 'application/vnd.forkd.snapshot.v3.piece';
/** An upload that breaks off begins again at its piece; registries and proxies take at least this much at once. */
const PIECE_BYTES = 32 * 1024 * 1024;
const EMPTY = Buffer.from('{}');
const EMPTY_CONFIG = { mediaType: 'application/vnd.oci.empty.v1+json', digest: `sha256:${sha256Of(EMPTY)}`, size: 2 };

const PREFIX = 'oci://';
export const isArtifact = (target: string): boolean => target.startsWith(PREFIX);

/** `oci://HOST/REPOSITORY:TAG`. Throws ARGUMENT_INVALID. */
export const parseArtifact = (target: string, argument: string, command: string): Reference => {
  const reference = parseReference(target.slice(PREFIX.length));
  if (!reference)
    throw new ForkdError('ARGUMENT_INVALID', {
      argument,
      reason: `'${target}' is not oci://HOST/NAME[:TAG][@sha256:DIGEST]`,
      command,
    });
  return reference;
};

export interface PushedArtifact {
  tag: string;
  reference: string;
  digest: string;
  bytes: number;
  /** Of these, what the registry had already. */
  bytes_there: number;
}

/** Throws what packing and `call` throw. */
export const pushArtifact = async (
  http: Http,
  store: Store,
  { reference, ...request }: Omit<PushRequest, 'url'> & { reference: Reference },
  hooks: PushHooks = {},
  pieceBytes = PIECE_BYTES,
): Promise<PushedArtifact> => {
  const registry = new Registry(http, reference, 'pull,push');
  const half = HalfFile.of(store.root, join(store.root, '.push'));
  try {
    hooks.onStep?.(`packing '${request.tag}'`);
    await writePack(store, request, half.path, hooks);
    const bytes = statSync(half.path).size;
    hooks.onStep?.(`uploading to ${showReference(reference)}`);
    await upload(registry, EMPTY_CONFIG, () => EMPTY, hooks);
    const layers: Descriptor[] = [];
    let there = 0;
    for (let at = 0; at < bytes; at += pieceBytes) {
      const read = () =>
        createReadStream(half.path, {
          start: at,
          end: Math.min(at + pieceBytes, bytes) - 1,
          highWaterMark: 1024 * 1024,
        });
      const piece = {
        mediaType: PIECE_TYPE,
        digest: `sha256:${await digestOf(read())}`,
        size: Math.min(pieceBytes, bytes - at),
      };
      if (!(await upload(registry, piece, read, hooks))) there += piece.size;
      layers.push(piece);
      hooks.onProgress?.(at + piece.size, bytes);
    }
    const manifest = Buffer.from(
      JSON.stringify({
        schemaVersion: 2,
        mediaType: MANIFEST_TYPE,
        artifactType: ARTIFACT_TYPE,
        config: EMPTY_CONFIG,
        layers,
        annotations: { 'org.opencontainers.image.title': `${request.tag}.forkd-snapshot.tar.zst` },
      }),
    );
    const digest = `sha256:${sha256Of(manifest)}`;
    await registry.call(registry.url(`manifests/${reference.tag ?? digest}`), {
      method: 'PUT',
      headers: { 'content-type': MANIFEST_TYPE },
      body: () => manifest,
      ...signalOf(hooks),
    });
    return { tag: request.tag, reference: showReference(reference), digest, bytes, bytes_there: there };
  } finally {
    half.close();
  }
};

const signalOf = ({ signal }: { signal?: AbortSignal }) => (signal ? { signal } : {});

const digestOf = async (source: Readable): Promise<string> => {
  const hash = createHash('sha256');
  for await (const part of source) hash.update(part as Buffer);
  return hash.digest('hex');
};

/** False when the registry has it. */
const upload = async (
  registry: Registry,
  { digest, size }: Descriptor,
  body: () => Readable | Buffer,
  hooks: PushHooks,
): Promise<boolean> => {
  const signal = signalOf(hooks);
  const { status } = await registry.call(registry.url(`blobs/${digest}`), {
    method: 'HEAD',
    allowed: [404],
    ...signal,
  });
  if (status !== 404) return false;
  const begun = await registry.call(registry.url('blobs/uploads/'), {
    method: 'POST',
    headers: { 'content-length': '0' },
    ...signal,
  });
  const { location } = begun.headers;
  if (typeof location !== 'string' || !URL.canParse(location, begun.url.href))
    throw refused(begun.url, 'it names no place for an upload');
  const place = new URL(location, begun.url);
  if (place.protocol !== begun.url.protocol && place.protocol !== 'https:')
    throw refused(begun.url, `its place for an upload is ${place.protocol}`);
  place.searchParams.set('digest', digest);
  const headers = { 'content-type': 'application/octet-stream', 'content-length': String(size) };
  await registry.call(place, { method: 'PUT', headers, body, ...signal });
  return true;
};

/** Throws what `pull` and `call` throw. */
export const pullArtifact = async (
  http: Http,
  store: Store,
  { reference, ...request }: Omit<PullRequest, 'url' | 'sha256' | 'bytes'> & { reference: Reference },
  hooks: PullHooks = {},
): Promise<Pulled> => {
  const registry = new Registry(http, reference);
  const { digest, manifest } = await findManifest(registry, hooks.signal);
  const pieces = piecesOf(registry, manifest);
  const fetch = async (
    partial: PartFile,
    more: Parameters<Parameters<typeof pullWith>[2]['fetch']>[1],
  ): Promise<void> => {
    const total = pieces.reduce((sum, { size }) => sum + size, 0);
    more.requireSpace?.(total - partial.bytes);
    let at = 0;
    for (const piece of pieces) {
      // What an earlier try has of a piece that is not whole is not known to be right.
      if (partial.bytes < at + piece.size) {
        partial.truncate(at);
        await fetchPiece(registry, piece, partial, at, {
          ...more,
          onProgress: () => more.onProgress?.(partial.bytes, total),
        });
      }
      at += piece.size;
    }
  };
  return pullWith(
    store,
    request,
    { name: `oci ${digest}`, from: showReference(reference), immutable: true, fetch },
    hooks,
  );
};

/** Throws TRANSFER_REFUSED. */
const piecesOf = (registry: Registry, manifest: Record<string, unknown>): Descriptor[] => {
  const bad = (reason: string) => refused(registry.url('manifests/'), reason);
  const { artifactType, layers } = manifest as { artifactType?: unknown; layers?: Descriptor[] };
  if (artifactType !== ARTIFACT_TYPE || !Array.isArray(layers))
    throw bad('it is not a snapshot of forkd (an image? `forkd from-image`)');
  let total = 0;
  for (const { digest, size, mediaType } of layers) {
    if (mediaType !== PIECE_TYPE || !/^sha256:[0-9a-f]{64}$/.test(String(digest)))
      throw bad('a piece of it is not one');
    total += size;
    if (!Number.isSafeInteger(size) || size < 1 || total > limits.transferMaxBytes)
      throw bad('the size of a piece is wrong');
  }
  return layers;
};

/** Appends one piece and holds it to its digest. */
const fetchPiece = async (
  registry: Registry,
  piece: Descriptor,
  partial: PartFile,
  base: number,
  hooks: PullHooks,
): Promise<void> => {
  let hash = createHash('sha256');
  const part: Part = {
    get bytes() {
      return partial.bytes - base;
    },
    validator: undefined,
    restart: () => {
      partial.truncate(base);
      hash = createHash('sha256');
    },
    append: async (data) => {
      hash.update(data);
      await partial.append(data);
    },
  };
  await downloadBlob(registry, piece, part, hooks);
  if (hash.digest('hex') === hexOf(piece.digest)) return;
  partial.truncate(base);
  throw refused(new URL(shown(registry.url(`blobs/${piece.digest}`))), 'its content has another digest');
};
