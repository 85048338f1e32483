/** What the user called an image, opened: a directory, an archive, a root file system, or something in a registry or a Docker engine. */
import { createHash } from 'node:crypto';
import { spawn } from 'node:child_process';
import { createReadStream, statSync } from 'node:fs';
import { join } from 'node:path';
import { ForkdError, reasonOf } from '../../contract/errors.js';
import { fileParts } from '../file-parts.js';
import { commandEnv, mustRun } from '../image/command.js';
import { type RegistryHooks, registryImage } from '../registry/image.js';
import { parseReference } from '../registry/reference.js';
import { NO_CONFIG } from './config.js';
import { DOCKER_PREFIX, saveFromDocker } from './docker.js';
import { DirFiles, decompressTo, type Files, sniff, TarFiles } from './files.js';
import { type Image, imageIn, type Layer, sha256Of } from './image.js';

/** A registry reference has none of these; `./` makes a path of any name. */
const isPath = (image: string): boolean => /^\.{0,2}\//.test(image) || /\.(tar|tgz|tar\.(gz|zst|zstd))$/.test(image);

/**
 * `work` is an empty directory that outlives the image, `blobs` where parts of downloads wait. Throws what `registryImage` throws, IMAGE_NOT_FOUND, IMAGE_UNSUPPORTED, IMAGE_INVALID.
 */
export const openImage = async (
  image: string,
  work: string,
  blobs: string,
  hooks: RegistryHooks = {},
): Promise<Image> => {
  const { signal } = hooks;
  if (image.startsWith(DOCKER_PREFIX)) {
    const saved = await saveFromDocker(image, work, hooks).catch((error) => {
      throw asInvalid(image, error);
    });
    return archiveImage(saved, work, signal).catch((error) => {
      throw asInvalid(image, error);
    });
  }
  if (!isPath(image)) {
    const reference = parseReference(image);
    if (!reference)
      throw new ForkdError('IMAGE_NOT_FOUND', { image, reason: 'it is neither a path nor the name of an image' });
    return registryImage(image, reference, blobs, hooks).catch((error) => {
      throw asInvalid(image, error);
    });
  }
  const stat = statSync(image, { throwIfNoEntry: false });
  if (!stat) throw new ForkdError('IMAGE_NOT_FOUND', { image, reason: 'there is no such file' });
  try {
    if (stat.isDirectory()) return (await imageIn(image, new DirFiles(image))) ?? (await treeImage(image, signal));
    return await archiveImage(image, work, signal);
  } catch (error) {
    throw asInvalid(image, error);
  }
};

/** Errors of the system and our own stay what they are. */
export const asInvalid = (image: string, error: unknown): unknown => {
  if (error instanceof ForkdError || typeof (error as { syscall?: unknown }).syscall === 'string') return error;
  return new ForkdError('IMAGE_INVALID', { image, reason: reasonOf(error) }, error);
};

const archiveImage = async (image: string, work: string, signal?: AbortSignal): Promise<Image> => {
  const { kind, whole } = await sniff(createReadStream(image));
  await whole.return(undefined);
  let path = image;
  if (kind !== 'plain') {
    // Its files are read in another order than they lie in it.
    path = join(work, 'archive.tar');
    await decompressTo(image, path, signal);
  }
  const files: Files = await TarFiles.read(path);
  return (await imageIn(image, files)) ?? (await rootImage(path, signal));
};

const single = (key: string, layer: Layer): Image => ({ key, config: NO_CONFIG, layers: [layer] });

/** A tar archive of a root file system. */
const rootImage = async (path: string, signal?: AbortSignal): Promise<Image> => {
  const hash = createHash('sha256');
  for await (const part of fileParts(path)) {
    signal?.throwIfAborted();
    hash.update(part);
  }
  const open = () => fileParts(path);
  return single(`tar ${hash.digest('hex')}`, { size: statSync(path).size, open });
};

/** A root file system in a directory, by way of the host's tar, which knows extended attributes. */
const treeImage = async (dir: string, signal?: AbortSignal): Promise<Image> => {
  // Whatever changes in it changes one of these: an inode's time of change cannot be set.
  const list = await mustRun('find', [dir, '-printf', '%P\\0%i\\0%s\\0%C@\\0%m\\0%U\\0%G\\0%l\\0'], { signal });
  const sorted = sha256Of(list);
  const args = [
    '--xattrs',
    '--xattrs-include=*',
    '--numeric-owner',
    '--format=pax',
    '--sort=name',
    '-C',
    dir,
    '-cf',
    '-',
    '.',
  ];
  return single(`dir ${sorted}`, { size: 0, open: () => runTar(args) });
};

async function* runTar(args: string[]): AsyncGenerator<Buffer> {
  const child = spawn('tar', args, { env: commandEnv(), stdio: ['ignore', 'pipe', 'pipe'] });
  let said = '';
  child.stderr.on('data', (data: Buffer) => {
    said = `${said}${data}`.slice(-2000);
  });
  const ended = new Promise<number | null>((resolve, reject) => {
    child.on('error', reject);
    child.on('close', resolve);
  });
  ended.catch(() => undefined);
  try {
    yield* child.stdout as AsyncIterable<Buffer>;
    const code = await ended;
    if (code !== 0) throw new ForkdError('IMAGE_BUILD_FAILED', { reason: `tar: ${said.trim()}` });
  } finally {
    child.kill('SIGKILL');
  }
}
