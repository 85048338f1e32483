/** An image as a list of layers: out of an OCI layout, a `docker save`, or a root file system. */
import { createHash } from 'node:crypto';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import { configOf, type ImageConfig } from './config.js';
import { decompressed, type Files } from './files.js';
import { readTar, StreamBytes } from './tar.js';
import type { Tree } from './tree.js';

export interface Layer {
  /** Bytes as they are stored, compressed or not. */
  open(): AsyncIterable<Buffer>;
  size: number;
  /** SHA-256 of what is stored, or of what that unpacks to. */
  digest?: string;
  diffId?: string;
}

export interface Image {
  /** Stands for the content: equal keys, equal images. */
  key: string;
  config: ImageConfig;
  /** Base first. */
  layers: Layer[];
  /** Its layers are downloaded as they are opened, and that is what progress is about. */
  downloads?: boolean;
  /** Removes what was downloaded, or leaves it for the next try. */
  close?: (keep: boolean) => Promise<void>;
}

export const sha256Of = (bytes: Buffer | string): string => createHash('sha256').update(bytes).digest('hex');

const DIGEST = /^sha256:([0-9a-f]{64})$/;

/** The hex digits of `sha256:...`. Throws an Error. */
export const hexOf = (digest: unknown): string => {
  const hex = typeof digest === 'string' ? DIGEST.exec(digest)?.[1] : undefined;
  if (hex === undefined) throw new Error(`'${String(digest).slice(0, 100)}' is not a SHA-256 digest`);
  return hex;
};

export interface Descriptor {
  mediaType?: string;
  digest: string;
  size: number;
  platform?: { os?: string; architecture?: string; variant?: string };
  annotations?: Record<string, string>;
}

/** Reads what a descriptor names. Throws an Error. */
export type Fetch = (descriptor: Descriptor) => Promise<Buffer>;

/** Parses JSON and holds it to its descriptor. */
export const fetchJson = async (fetch: Fetch, descriptor: Descriptor): Promise<Record<string, unknown>> => {
  const hex = hexOf(descriptor.digest);
  if (!(descriptor.size >= 0 && descriptor.size <= limits.imageJsonMaxBytes))
    throw new Error('a document of it is too large');
  const content = await fetch(descriptor);
  if (content.length !== descriptor.size) throw new Error(`${descriptor.digest} has another size than was said`);
  if (sha256Of(content) !== hex) throw new Error(`what came for ${descriptor.digest} has another digest`);
  return parseObject(content, descriptor.digest);
};

export const parseObject = (content: Buffer, name: string): Record<string, unknown> => {
  let value: unknown;
  try {
    value = JSON.parse(content.toString('utf8'));
  } catch (error) {
    throw new Error(`${name}: ${reasonOf(error)}`);
  }
  if (typeof value !== 'object' || value === null) throw new Error(`${name} is not an object`);
  return value as Record<string, unknown>;
};

const INDEX_DEPTH_MAX = 4;

/** The manifest for linux/amd64, through indexes. Throws IMAGE_UNSUPPORTED, an Error. */
export const chooseManifest = async (
  image: string,
  fetch: Fetch,
  value: Record<string, unknown>,
  depth = 0,
): Promise<Record<string, unknown>> => {
  const { manifests } = value;
  if (manifests === undefined) return value;
  if (!Array.isArray(manifests) || depth >= INDEX_DEPTH_MAX) throw new Error('its index is wrong');
  const list = manifests as Descriptor[];
  const fits =
    list.find(({ platform: p }) => p?.os === 'linux' && p.architecture === 'amd64') ??
    list.find(({ platform }) => platform === undefined);
  if (fits === undefined) {
    const there = list.map(({ platform }) => `${platform?.os}/${platform?.architecture}`).slice(0, 20);
    throw new ForkdError('IMAGE_UNSUPPORTED', { image, reason: `it is for ${there.join(', ') || 'nothing'}` });
  }
  return chooseManifest(image, fetch, await fetchJson(fetch, fits), depth + 1);
};

/** An image out of its manifest. */
export const imageOf = async (
  image: string,
  manifest: Record<string, unknown>,
  fetch: Fetch,
  open: (descriptor: Descriptor) => AsyncIterable<Buffer>,
): Promise<Image> => {
  const { config, layers } = manifest as { config?: Descriptor; layers?: Descriptor[] };
  if (config === undefined || !Array.isArray(layers)) throw new Error('its manifest has no configuration or no layers');
  requireCount(layers.length);
  const document = await fetchJson(fetch, config);
  requirePlatform(image, document);
  for (const { size } of layers)
    if (!Number.isSafeInteger(size) || size < 0) throw new Error('the size of a layer is wrong');
  return {
    key: sha256Of(JSON.stringify([config.digest, layers.map(({ digest }) => digest)])),
    config: configOf(document['config']),
    layers: layers.map((layer) => ({ digest: hexOf(layer.digest), size: layer.size, open: () => open(layer) })),
  };
};

const requireCount = (layers: number): void => {
  if (layers > limits.imageLayersMax) throw new Error(`it has ${layers} layers`);
};

const requirePlatform = (image: string, { os = 'linux', architecture = 'amd64' }: Record<string, unknown>): void => {
  if (os !== 'linux' || architecture !== 'amd64')
    throw new ForkdError('IMAGE_UNSUPPORTED', { image, reason: `it is for ${String(os)}/${String(architecture)}` });
};

/** An OCI layout or a `docker save`; undefined when the files are neither. */
export const imageIn = async (image: string, files: Files): Promise<Image | undefined> => {
  if (files.has('oci-layout') && files.has('index.json')) return layoutImage(image, files);
  if (files.has('manifest.json')) return savedImage(image, files);
  return undefined;
};

const layoutImage = async (image: string, files: Files): Promise<Image> => {
  const blob = ({ digest }: Descriptor): string => `blobs/sha256/${hexOf(digest)}`;
  const fetch: Fetch = (descriptor) => files.json(blob(descriptor));
  const index = parseObject(await files.json('index.json'), 'index.json');
  if (index['manifests'] === undefined) throw new Error('index.json has no manifests');
  const manifest = await chooseManifest(image, fetch, index);
  return imageOf(image, manifest, fetch, (descriptor) => files.open(blob(descriptor)));
};

const savedImage = async (image: string, files: Files): Promise<Image | undefined> => {
  const value = JSON.parse((await files.json('manifest.json')).toString('utf8')) as unknown;
  const [first] = (Array.isArray(value) ? value : []) as { Config?: unknown; Layers?: unknown }[];
  if (typeof first?.Config !== 'string' || !Array.isArray(first.Layers)) return undefined;
  const layers = first.Layers as unknown[];
  requireCount(layers.length);
  const document = parseObject(await files.json(first.Config), first.Config);
  requirePlatform(image, document);
  const { diff_ids: ids } = (document['rootfs'] ?? {}) as { diff_ids?: unknown };
  if (!Array.isArray(ids) || ids.length !== layers.length)
    throw new Error('its configuration has other layers than it');
  return {
    key: sha256Of(JSON.stringify(document)),
    config: configOf(document['config']),
    layers: layers.map((name, i) => {
      if (typeof name !== 'string') throw new Error('a layer has no name');
      return { diffId: hexOf(ids[i]), size: files.size(name), open: () => files.open(name) };
    }),
  };
};

export interface ApplyHooks {
  signal?: AbortSignal;
  /** Stored bytes that were read, of all. */
  onProgress?: (done: number, total: number) => void;
}

/** Applies all layers. Throws an Error that names the layer. */
export const applyLayers = async (tree: Tree, layers: Layer[], hooks: ApplyHooks = {}): Promise<void> => {
  const total = layers.reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  for (const [i, layer] of layers.entries()) {
    tree.beginLayer(i);
    const onBytes = (bytes: number): void => {
      hooks.signal?.throwIfAborted();
      done += bytes;
      hooks.onProgress?.(done, total);
    };
    try {
      await applyLayer(tree, layer, onBytes);
    } catch (error) {
      if (error instanceof ForkdError || typeof (error as { syscall?: unknown }).syscall === 'string') throw error;
      throw new Error(`layer ${i + 1} of ${layers.length}: ${reasonOf(error)}`, { cause: error });
    }
  }
};

const applyLayer = async (tree: Tree, layer: Layer, onBytes: (bytes: number) => void): Promise<void> => {
  const stored = hashed(layer.open(), layer.digest);
  const counted = async function* () {
    for await (const part of stored.parts) {
      onBytes(part.length);
      yield part;
    }
  };
  const content = hashed(decompressed(counted()), layer.diffId);
  const bytes = new StreamBytes(content.parts);
  for await (const { entry, body } of readTar(bytes)) await tree.add(entry, body);
  // What is behind the archive's end counts for the digest.
  while (await bytes.some(Number.MAX_SAFE_INTEGER));
  stored.check('digest');
  content.check('content');
};

const hashed = (source: AsyncIterable<Buffer>, expected: string | undefined) => {
  const hash = createHash('sha256');
  const parts = async function* () {
    for await (const part of source) {
      if (expected !== undefined) hash.update(part);
      yield part;
    }
  };
  const check = (what: string): void => {
    if (expected !== undefined && hash.digest('hex') !== expected)
      throw new Error(`its ${what} is another than was said`);
  };
  return { parts: parts(), check };
};
