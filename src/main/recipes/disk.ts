/**
 * Root disks of recipes, in a cache: the default guest's packages and the recipe's, its files, and what its setup did in a VM. Made in `.staging-*`
 * beside their place, and renamed into it.
 */
import { createHash } from 'node:crypto';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { cp, mkdir, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { ForkdError } from '../../contract/errors.js';
import { fileParts } from '../file-parts.js';
import { buildTree } from '../image/build.js';
import { makeStaging } from '../image/cache.js';
import { lastLines } from '../image/command.js';
import { makeExt4, measure } from '../image/filesystem.js';
import { readGuestSources, sourceDigest } from '../image/sources.js';
import type { Progress } from '../image/types.js';
import { type DiskContext, runInDisk, shrink, WRITING_ROOM } from '../oci/disk-vm.js';
import { FILES, type Recipe, recipeDigest, SETUP } from './recipe.js';

/** Raised when the same recipe gives another disk. */
const BUILDER_VERSION = 1;

const DISK = 'rootfs.ext4';
const RECORD = 'recipe.json';

export interface RecipeDisk {
  path: string;
  bytes: number;
  sha256: string;
  /** Debian package name to version. */
  packages: Record<string, string>;
}

export interface DiskHooks {
  onProgress?: Progress;
  onStep?: (step: string) => void;
  signal?: AbortSignal;
}

/** Where its disk is, or will be. */
export const diskDir = (cacheDir: string, recipe: Recipe): string => {
  const content = [BUILDER_VERSION, sourceDigest(readGuestSources()), recipeDigest(recipe)];
  const key = createHash('sha256').update(JSON.stringify(content)).digest('hex');
  return join(cacheDir, `${recipe.name}-${key.slice(0, 16)}`);
};

/** The disk, if it is there and whole. */
export const findDisk = (dir: string): RecipeDisk | undefined => {
  try {
    const record = JSON.parse(readFileSync(join(dir, RECORD), 'utf8')) as Omit<RecipeDisk, 'path'>;
    const path = join(dir, DISK);
    return statSync(path).size === record.bytes ? { ...record, path } : undefined;
  } catch {
    return undefined;
  }
};

/** `context` is asked for when there is something to set up. Throws IMAGE_DOWNLOAD_FAILED, IMAGE_BUILD_FAILED, RECIPE_FAILED, CANCELLED. */
export const buildDisk = async (
  cacheDir: string,
  recipe: Recipe,
  context: () => Promise<DiskContext>,
  hooks: DiskHooks = {},
): Promise<RecipeDisk> => {
  const target = diskDir(cacheDir, recipe);
  const found = findDisk(target);
  if (found) return found;
  const staging = await makeStaging(cacheDir);
  try {
    const made = join(staging, 'made');
    await mkdir(made);
    const record = await make(join(made, DISK), staging, recipe, context, hooks);
    await writeFile(join(made, RECORD), `${JSON.stringify(record, null, 2)}\n`);
    // Somebody else may have made the same meanwhile, or it may be damaged.
    if (!findDisk(target)) await rm(target, { recursive: true, force: true });
    await rename(made, target).catch((error) => {
      if (!findDisk(target)) throw error;
    });
    return { ...record, path: join(target, DISK) };
  } catch (error) {
    throw hooks.signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
};

const make = async (
  path: string,
  staging: string,
  recipe: Recipe,
  context: () => Promise<DiskContext>,
  { signal, onProgress = () => undefined, onStep }: DiskHooks,
): Promise<Omit<RecipeDisk, 'path'>> => {
  const { root, packages } = await buildTree(staging, recipe, onProgress, signal);
  // As a script of base-files has it. Programs look there, and packages may have put a directory in its place.
  await rm(join(root, 'var/run'), { recursive: true, force: true });
  await symlink('/run', join(root, 'var/run'));
  const files = join(recipe.dir, FILES);
  if (existsSync(files)) await cp(files, root, { recursive: true, verbatimSymlinks: true });
  const setup = join(recipe.dir, SETUP);
  const needed = await measure(root);
  onProgress('writing the root disk', 0.8);
  if (existsSync(setup)) {
    const { bytes, inodes } = WRITING_ROOM;
    await makeExt4(root, path, signal, { blocks: needed.blocks + bytes / 4096, inodes: needed.inodes + inodes });
    onProgress('root disk ready', 1);
    onStep?.(`setting up ${recipe.name} in a VM`);
    const reply = await runInDisk(path, ['sh', '-c', `${readFileSync(setup, 'utf8')}\nsync\n`], await context());
    if (reply.error !== undefined || reply.exit_code !== 0)
      throw new ForkdError('RECIPE_FAILED', { name: recipe.name, output: reply.error ?? lastLines(`${reply.stderr}`) });
    await shrink(path, signal);
  } else {
    await makeExt4(root, path, signal, needed);
    onProgress('root disk ready', 1);
  }
  const hash = createHash('sha256');
  for await (const part of fileParts(path)) hash.update(part);
  return {
    bytes: statSync(path).size,
    sha256: hash.digest('hex'),
    packages: Object.fromEntries(packages.map(({ name, version }) => [name, version])),
  };
};
