/** An image in a registry. Layers are downloaded ahead of the one that is unpacked, into parts that a later try goes on with. */
import { createReadStream } from 'node:fs';
import { limits } from '../../contract/limits.js';
import { Http } from '../../http/client.js';
import { PartFile } from '../../http/part-file.js';
import { chooseManifest, type Descriptor, type Image, imageOf } from '../oci/image.js';
import { downloadBlob } from './blobs.js';
import { Registry } from './client.js';
import { blobFetch, findManifest, manifestFetch } from './manifests.js';
import type { Reference } from './reference.js';

export interface RegistryHooks {
  signal?: AbortSignal;
  onProgress?: (done: number, total: number) => void;
  onRetry?: (reason: string, waitMs: number) => void;
}

const AHEAD = 2;

/** `dir` is where parts wait. Throws what `call` throws, IMAGE_UNSUPPORTED, an Error with the reason. */
export const registryImage = async (
  image: string,
  reference: Reference,
  dir: string,
  hooks: RegistryHooks = {},
  http = new Http(),
): Promise<Image> => {
  const { signal } = hooks;
  const registry = new Registry(http, reference);
  try {
    const { manifest } = await findManifest(registry, signal);
    const chosen = await chooseManifest(image, manifestFetch(registry, signal), manifest);
    const layers = new Layers(registry, dir, hooks);
    const found = await imageOf(image, chosen, blobFetch(registry, signal), (layer) => layers.open(layer));
    layers.expect((chosen as { layers: Descriptor[] }).layers);
    const close = async (keep: boolean): Promise<void> => {
      await layers.close(keep);
      await http.close();
    };
    return { ...found, downloads: true, close };
  } catch (error) {
    await http.close();
    throw error;
  }
};

class Layers {
  #order: Descriptor[] = [];
  #total = 0;
  readonly #parts = new Map<string, Promise<PartFile>>();
  readonly #open: PartFile[] = [];
  readonly #aborted = new AbortController();

  constructor(
    readonly registry: Registry,
    readonly dir: string,
    readonly hooks: RegistryHooks,
  ) {}

  /** A layer may occur more than once. Throws an Error. */
  expect(layers: Descriptor[]): void {
    this.#order = layers;
    this.#total = [...new Map(layers.map(({ digest, size }) => [digest, size])).values()].reduce((a, b) => a + b, 0);
    if (this.#total > limits.imageContentMaxBytes) throw new Error('its layers are too large');
  }

  async *open(layer: Descriptor): AsyncGenerator<Buffer> {
    const at = this.#order.findIndex(({ digest }) => digest === layer.digest);
    const [first] = this.#order.slice(at, at + 1 + AHEAD).map((one) => this.#fetch(one));
    const { path } = await (first as Promise<PartFile>);
    yield* createReadStream(path, { highWaterMark: 1024 * 1024 }) as AsyncIterable<Buffer>;
  }

  async close(keep: boolean): Promise<void> {
    this.#aborted.abort();
    await Promise.allSettled(this.#parts.values());
    for (const part of this.#open) part.close(keep);
  }

  #fetch(layer: Descriptor): Promise<PartFile> {
    const known = this.#parts.get(layer.digest);
    if (known) return known;
    const fetched = this.#download(layer);
    // Whoever unpacks that layer meets it.
    fetched.catch(() => undefined);
    this.#parts.set(layer.digest, fetched);
    return fetched;
  }

  async #download(layer: Descriptor): Promise<PartFile> {
    const part = PartFile.open(this.dir, layer.digest);
    this.#open.push(part);
    const { signal, onProgress, onRetry } = this.hooks;
    const signals = [this.#aborted.signal, ...(signal ? [signal] : [])];
    await downloadBlob(this.registry, layer, part, {
      signal: AbortSignal.any(signals),
      onProgress: () =>
        onProgress?.(
          this.#open.reduce((sum, { bytes }) => sum + bytes, 0),
          this.#total,
        ),
      ...(onRetry ? { onRetry } : {}),
    });
    return part;
  }
}
