/**
 * Root disks made of images, in a cache: one directory for each content, made in `.staging-*` beside it and renamed into place. A build that
 * fails leaves nothing.
 */
import { readFileSync, statSync } from 'node:fs';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { AGENT_GENERATION } from '../../contract/guest.js';
import { fileDigest } from '../file-digest.js';
import { makeStaging } from '../image/cache.js';
import { findPython, type ImageConfig, userIds, writeConfig } from './config.js';
import { Disk } from './ext4/disk.js';
import { writeExt4 } from './ext4/write.js';
import { WRITING_ROOM } from './disk-vm.js';
import { applyLayers, type Image, sha256Of } from './image.js';
import { asInvalid, openImage } from './open.js';
import { type Node, Tree } from './tree.js';

/** Raised when the same image gives another disk. */
const BUILDER_VERSION = 3;

export interface RootfsRequest {
  /** As the user called it. */
  image: string;
  /** The least size of the disk; it is otherwise as large as it must be. */
  sizeMib?: number;
  /** Packages that its own package manager adds. */
  extras?: string[];
}

/** Adds packages to a disk and makes it small again; returns the Python for the agent, if there is one. */
export type Install = (
  disk: string,
  image: string,
  packages: string[],
  signal?: AbortSignal,
) => Promise<string | undefined>;

export interface RootfsHooks {
  signal?: AbortSignal;
  onStep?: (step: string) => void;
  /** Bytes of layers, downloaded or read. */
  onProgress?: (done: number, total: number) => void;
  onRetry?: (reason: string, waitMs: number) => void;
  /** Needed for extras. */
  install?: Install;
}

/** The content of image.json. */
export interface RootfsRecord {
  format: 1;
  key: string;
  image: string;
  built_at: string;
  agent_generation: number;
  /** The agent that the guest runs. */
  agent: 'python' | 'c';
  python?: string;
  config: ImageConfig;
  extras?: string[];
  bytes: number;
  /** Of the disk. */
  blake3: string;
}

export interface Rootfs {
  path: string;
  record: RootfsRecord;
  /** It was there already. */
  cached: boolean;
}

const RECORD = 'image.json';
const DISK = 'rootfs.ext4';

/** Throws what openImage throws, IMAGE_INVALID, IMAGE_BUILD_FAILED, IMAGE_TOOL_MISSING, CANCELLED. */
export const buildRootfs = async (
  cacheDir: string,
  request: RootfsRequest,
  hooks: RootfsHooks = {},
): Promise<Rootfs> => {
  const { image: name, sizeMib = 0 } = request;
  const extras = [...new Set(request.extras)].sort();
  const staging = await makeStaging(cacheDir);
  let image: Image | undefined;
  let keep = false;
  try {
    image = await openImage(name, staging, blobsDir(cacheDir), hooks);
    const content = [BUILDER_VERSION, AGENT_GENERATION, image.key, sizeMib, ...(extras.length > 0 ? [extras] : [])];
    const key = sha256Of(JSON.stringify(content)).slice(0, 32);
    const target = join(cacheDir, key);
    const found = lookUp(target);
    if (found) return { ...found, cached: true };
    const made = join(staging, 'made');
    await mkdir(made);
    const record = await build(image, { ...request, extras }, key, made, hooks);
    await writeFile(join(made, RECORD), `${JSON.stringify(record, null, 2)}\n`);
    await publish(made, target);
    return { path: join(target, DISK), record, cached: false };
  } catch (error) {
    keep = hooks.signal?.aborted === true || isPassing(error);
    throw hooks.signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await image?.close?.(keep);
    await rm(staging, { recursive: true, force: true });
  }
};

/** Where parts of layers wait for the next try. */
export const blobsDir = (cacheDir: string): string => join(cacheDir, 'blobs');

/** What was downloaded is still good: the network, the disk or the user ended it. */
const isPassing = (error: unknown): boolean => {
  const { code, syscall } = error as { code?: string; syscall?: unknown };
  return syscall !== undefined || !['IMAGE_INVALID', 'IMAGE_UNSUPPORTED', 'TRANSFER_REFUSED'].includes(code ?? '');
};

/** What is there under this key, if it is whole. */
const lookUp = (dir: string): { path: string; record: RootfsRecord } | undefined => {
  try {
    const record = JSON.parse(readFileSync(join(dir, RECORD), 'utf8')) as RootfsRecord;
    const path = join(dir, DISK);
    return statSync(path).size === record.bytes ? { path, record } : undefined;
  } catch {
    return undefined;
  }
};

/** Somebody else may have made the same meanwhile. */
const publish = async (made: string, target: string): Promise<void> => {
  await rename(made, target).catch(async (error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
    if (lookUp(target)) return;
    await rm(target, { recursive: true });
    await rename(made, target);
  });
};

const build = async (
  image: Image,
  { image: name, sizeMib = 0, extras = [] }: RootfsRequest,
  key: string,
  made: string,
  hooks: RootfsHooks,
): Promise<RootfsRecord> => {
  const path = join(made, DISK);
  const disk = new Disk(path);
  const tree = new Tree(disk);
  hooks.onStep?.(
    `${image.downloads ? 'downloading and ' : ''}unpacking ${image.layers.length} ${image.layers.length === 1 ? 'layer' : 'layers'}`,
  );
  try {
    const { onProgress: _, ...silent } = hooks;
    await applyLayers(tree, image.layers, image.downloads ? silent : hooks);
    if (tree.entries === 0) throw new Error('there is nothing in it');
    tree.beginLayer(image.layers.length);
    const accounts = { passwd: await textOf(tree, '/etc/passwd'), group: await textOf(tree, '/etc/group') };
    await writeConfig(tree, image.config, userIds(image.config.user, accounts));
    hooks.signal?.throwIfAborted();
    hooks.onStep?.('writing the root disk');
    const room = { minBytes: sizeMib * 1024 * 1024, ...(extras.length > 0 ? WRITING_ROOM : {}) };
    await writeExt4(tree, disk, room);
  } catch (error) {
    throw asInvalid(name, error);
  } finally {
    await disk.close();
  }
  hooks.signal?.throwIfAborted();
  let python = findPython(tree);
  if (extras.length > 0) {
    if (!hooks.install) throw new ForkdError('INTERNAL', { reason: 'extras without a VM to install them' });
    hooks.onStep?.(`installing ${extras.join(' ')} in a VM of the image`);
    python = await hooks.install(path, name, extras, hooks.signal);
  }
  return {
    format: 1,
    key,
    image: name,
    built_at: new Date().toISOString(),
    agent_generation: AGENT_GENERATION,
    agent: python === undefined ? 'c' : 'python',
    ...(python === undefined ? {} : { python }),
    config: image.config,
    ...(extras.length > 0 ? { extras } : {}),
    bytes: statSync(path).size,
    blake3: (await fileDigest(path)).blake3,
  };
};

/** Accounts are a few KiB. */
const TEXT_MAX_BYTES = 1024 * 1024;

const textOf = async (tree: Tree, path: string): Promise<string> => {
  const node: Node | undefined = tree.find(path);
  if (node?.kind !== 'file' || node.size > TEXT_MAX_BYTES) return '';
  return (await tree.read(node)).toString('utf8');
};
