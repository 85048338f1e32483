/**
 * Unpacks a pack of version 1 or 2: one stream, read once, from which each memory image becomes a layer as it arrives. Only what the manifest names is
 * taken, each file to its size and SHA-256. What runs here is what QEMU saved; of any other engine's packs the root disk can be had.
 */
import { rmSync } from 'node:fs';
import { ForkdError } from '../../../contract/errors.js';
import { limits } from '../../../contract/limits.js';
import { MANIFEST_FILE, MEMORY_FILE, STATE_FILE } from '../../../contract/snapshot.js';
import { MiB } from '../../../contract/units.js';
import { native } from '../../../native/binding.js';
import { whileAtWork } from '../../native-threads.js';
import type { Store } from '../../store/store.js';
import type { Undo } from '../../undo.js';
import { invalid } from '../format.js';
import type { PackHooks } from '../pack.js';
import { type Arrived, StagedChain, type StagedDisk, type StagedLink } from '../staged-chain.js';
import type { OpenRequest, UnpackRequest } from '../unpack.js';
import { Archive, type Content, copyEntry, totalBytes } from './archive.js';
import { ImageLayer, type ParentImage } from './image-layer.js';
import { fileOf, MEMORY_IMAGE, type PlainFile, type PlainFileName, type PlainLink, ROOTFS } from './manifest.js';
import { besidePack, type DiskFacts, readSidecar, sidecarName } from './sidecar.js';

/** Throws PACK_INVALID, PACK_OTHER_ENGINE, SNAPSHOT_EXISTS, SNAPSHOT_BUSY, SNAPSHOT_HAS_DEPENDENTS, DISK_FULL; an Error with the reason for what is damaged. */
export const unpackPlain = async (
  store: Store,
  request: UnpackRequest,
  fd: number,
  undo: Undo,
  hooks: PackHooks,
): Promise<Arrived> => {
  const archive = await Archive.open(request, fd, undo, hooks);
  return new Unpacking(store, request, archive, undo, hooks).run();
};

/** Writes the root disk of the pack into a new file, and returns its bytes. Throws PACK_INVALID; an Error for what is damaged. */
export const takePlainDisk = async (
  request: OpenRequest,
  fd: number,
  into: number,
  undo: Undo,
  hooks: PackHooks,
): Promise<number> => {
  const archive = await Archive.open(request, fd, undo, hooks);
  const head = archive.links.at(-1) as PlainLink;
  const wanted = fileOf(head, ROOTFS);
  if (!wanted) {
    const { rootfs } = archive.manifest;
    if (!rootfs) throw new Error('it names no root disk');
    await fetchSidecar(request, rootfs, into, {
      ...hooks,
      onProgress: (done) => hooks.onProgress?.(done, rootfs.size),
    });
    return rootfs.size;
  }
  for await (const { link, name, content } of archive.entries()) {
    if (link !== head || name !== ROOTFS) {
      for await (const _ of content.parts);
      continue;
    }
    await copyEntry(content, into);
    return wanted.size;
  }
  throw new Error(`it has no ${ROOTFS}`);
};

const fetchSidecar = async (
  { path, sidecar = besidePack(path) }: OpenRequest,
  facts: DiskFacts,
  into: number,
  hooks: { signal?: AbortSignal; onProgress?: (bytes: number) => void },
): Promise<void> => {
  const name = sidecarName(facts.sha256);
  const found = await sidecar(name);
  if (!found) throw new ForkdError('PACK_SIDECAR_MISSING', { path, name });
  try {
    await readSidecar(found.path, facts, into, hooks);
  } finally {
    found.close();
  }
};

/** Of a chain, all have the size of its guest. Throws PACK_INVALID. */
const requireImages = (path: string, links: PlainLink[]): void => {
  const sizes = links.map((link) => (fileOf(link, MEMORY_IMAGE) as PlainFile).size);
  const isGuest = (size: number) => size % MiB === 0 && size <= limits.memoryMaxMib * MiB;
  if (!sizes.every((size) => isGuest(size) && size === sizes[0]))
    throw invalid(path, `${MEMORY_IMAGE} has a size that no guest has`);
};

/** At least: of memory only so much is written as is not zero, nor the parent's. */
const neededBytes = ({ links, manifest }: Archive): number =>
  links.reduce(
    (sum, { files }) => sum + totalBytes(files.filter(({ path }) => path !== MEMORY_IMAGE)),
    manifest.rootfs?.size ?? 0,
  );

class Unpacking {
  readonly chain: StagedChain;
  readonly disks: StagedDisk[] = [];
  /** By the tag in the pack. */
  readonly #said = new Map<string, Record<string, unknown>>();
  readonly #images = new Map<string, ParentImage>();
  /** Base first. */
  readonly #layers: number[] = [];

  constructor(
    readonly store: Store,
    readonly request: UnpackRequest,
    readonly archive: Archive,
    readonly undo: Undo,
    readonly hooks: PackHooks,
  ) {
    requireImages(request.path, archive.links);
    const tags = archive.links.map(({ tag }) => tag);
    this.chain = new StagedChain(store, request, tags, neededBytes(archive), undo);
  }

  async run(): Promise<Arrived> {
    const { links } = this.archive;
    for await (const { link, name, content } of this.archive.entries())
      await this.#take(link, links[links.indexOf(link) - 1], name, content);
    await this.#takeSidecar();
    for (const link of this.chain.links) this.#describe(link);
    const manifests = this.chain.settle(this.chain.open(), this.disks);
    await this.chain.sync();
    for (const { path } of this.disks) rmSync(path);
    this.hooks.signal?.throwIfAborted();
    return this.chain.publish(manifests);
  }

  async #take(link: PlainLink, parent: PlainLink | undefined, name: PlainFileName, content: Content): Promise<void> {
    const { staging } = this.chain.links.find(({ from }) => from === link.tag) as StagedLink;
    if (name === MANIFEST_FILE) this.#said.set(link.tag, await this.#readSaid(link, content));
    else if (name === MEMORY_IMAGE)
      this.#images.set(link.tag, await this.#takeImage(content, parent, staging.file(MEMORY_FILE)));
    else if (name === STATE_FILE) await copyEntry(content, this.chain.create(staging.file(STATE_FILE)));
    else await this.#takeDisk((fd) => copyEntry(content, fd));
  }

  /** Of what QEMU saved, snapshot.json says so; without that nothing here can run it, and the rest need not be read. */
  async #readSaid(link: PlainLink, content: Content): Promise<Record<string, unknown>> {
    const text: Buffer[] = [];
    for await (const { part } of content.parts) text.push(Buffer.from(part));
    const said = JSON.parse(Buffer.concat(text).toString()) as { vmm?: { name?: unknown }; tag?: unknown };
    if (said?.vmm?.name !== 'qemu') throw this.#otherEngine();
    if (said.tag !== link.tag) throw new Error(`the ${MANIFEST_FILE} of '${link.tag}' is of another tag`);
    return said as Record<string, unknown>;
  }

  #otherEngine(): ForkdError {
    return new ForkdError('PACK_OTHER_ENGINE', { path: this.request.path });
  }

  async #takeImage(content: Content, parent: PlainLink | undefined, path: string): Promise<ParentImage> {
    const below = parent && this.#images.get(parent.tag);
    if (parent && !below) throw new Error(`the memory of '${parent.tag}' does not come before its child's`);
    const fd = this.chain.create(path);
    const layer = new ImageLayer(fd, content.bytes, below);
    try {
      for await (const { at, part } of content.parts) layer.write(at, part);
      const root = layer.finish();
      this.#layers.push(fd);
      const source = native.sourceOpen(this.#layers);
      this.undo.push(() => void native.sourceClose(source));
      // That was its only child; of a long chain of large guests all would be gigabytes.
      if (below) native.sourceClose(below.source);
      return { source, root };
    } finally {
      layer.close();
    }
  }

  /** Known by its content from here on: which link has it as what, its snapshot.json says. */
  async #takeDisk(write: (fd: number) => Promise<void>): Promise<void> {
    const path = this.chain.head.staging.file(`disk-${this.disks.length}`);
    const fd = this.chain.create(path);
    await write(fd);
    const { blake3, bytes } = await whileAtWork(() => native.fdBlake3(fd));
    this.disks.push({ blake3, size: bytes, path });
  }

  async #takeSidecar(): Promise<void> {
    const { rootfs } = this.archive.manifest;
    const { request, hooks } = this;
    const { signal } = hooks;
    if (rootfs) await this.#takeDisk((fd) => fetchSidecar(request, rootfs, fd, signal ? { signal } : {}));
  }

  /** Writes what the link says of itself, with the layer that its memory has become. What it says is checked when the chain is opened. */
  #describe({ from, staging }: StagedLink): void {
    const said = this.#said.get(from);
    if (!said) throw this.#otherEngine();
    const { links } = this.archive;
    const parent = links[links.findIndex(({ tag }) => tag === from) - 1];
    const { root: memory_root } = this.#images.get(from) as ParentImage;
    const below = parent ? { parent_content_hash: this.#images.get(parent.tag)?.root } : {};
    const text = JSON.stringify({ ...said, ...below, memory_root, vmstate: STATE_FILE, memory: MEMORY_FILE });
    const fd = this.chain.create(staging.file(MANIFEST_FILE));
    native.fdWrite(fd, Buffer.from(text), 0);
  }
}
