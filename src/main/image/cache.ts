/**
 * The image cache: one directory for each digest, and current.json, which says which image fits which guest sources.
 *
 * A build happens in `.staging-*` beside its target and is renamed into place: a crash leaves only a staging directory.
 * Two builders of one image both finish; the second finds the target there and drops its own.
 */
import { readFileSync, statSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { GuestImage, ImageRecord } from './types.js';

export const STAGING_PREFIX = '.staging-';
const POINTER = 'current.json';

/** The image in `cacheDir` that fits these sources, if there is a whole one. Reads two small files; never runs apt. */
export const lookUp = (cacheDir: string, sourceDigest: string): GuestImage | undefined => {
  try {
    const pointers = JSON.parse(readFileSync(join(cacheDir, POINTER), 'utf8')) as Record<string, string>;
    const digest = pointers[sourceDigest];
    return digest === undefined ? undefined : open(join(cacheDir, digest));
  } catch (error) {
    if (error instanceof SyntaxError || (error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
};

/** The image in `dir`; undefined when a file is gone or does not have the recorded size. */
export const open = (dir: string): GuestImage | undefined => {
  const record = JSON.parse(readFileSync(join(dir, 'image.json'), 'utf8')) as ImageRecord;
  for (const { name, bytes } of Object.values(record.files)) {
    if (statSync(join(dir, name), { throwIfNoEntry: false })?.size !== bytes) return undefined;
  }
  const path = (key: keyof ImageRecord['files']) => join(dir, record.files[key].name);
  return { dir, digest: record.digest, kernel: path('kernel'), initrd: path('initrd'), rootfs: path('rootfs'), record };
};

export const makeStaging = async (cacheDir: string): Promise<string> => {
  await mkdir(cacheDir, { recursive: true });
  await dropAbandoned(cacheDir);
  return await mkdtemp(join(cacheDir, `${STAGING_PREFIX}${process.pid}-`));
};

/** Moves a finished image to its name. An image of that name that is already there is as good, and may be in use. */
export const publish = async (staged: string, cacheDir: string, record: ImageRecord): Promise<GuestImage> => {
  const target = join(cacheDir, record.digest);
  await rename(staged, target).catch(async (error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOTEMPTY' && error.code !== 'EEXIST') throw error;
    await replaceDamaged(staged, target);
  });
  await point(cacheDir, record);
  const image = open(target);
  if (!image) throw new Error(`${target} was changed while it was being published`);
  return image;
};

const replaceDamaged = async (staged: string, target: string): Promise<void> => {
  if (readable(target)) return;
  await rename(target, `${staged}.damaged`);
  await rename(staged, target);
  await rm(`${staged}.damaged`, { recursive: true, force: true });
};

const readable = (dir: string): boolean => {
  try {
    return open(dir) !== undefined;
  } catch {
    return false;
  }
};

/** Replaced by rename: a reader sees the old pointers or the new ones. A lost update only costs its loser a rebuild. */
const point = async (cacheDir: string, record: ImageRecord): Promise<void> => {
  const path = join(cacheDir, POINTER);
  const old = await readFile(path, 'utf8')
    .then(JSON.parse)
    .catch(() => ({}));
  const half = `${path}.${process.pid}.part`;
  await writeFile(half, `${JSON.stringify({ ...old, [record.sourceDigest]: record.digest }, null, 2)}\n`);
  await rename(half, path);
};

/** Removes staging directories whose builder (the process id in the name) is no longer alive. */
const dropAbandoned = async (cacheDir: string): Promise<void> => {
  for (const name of await readdir(cacheDir)) {
    const pid = new RegExp(`^\\${STAGING_PREFIX}(\\d+)-`).exec(name)?.[1];
    if (pid === undefined || (await isAlive(pid))) continue;
    await rm(join(cacheDir, name), { recursive: true, force: true });
  }
};

const isAlive = (pid: string): Promise<boolean> =>
  stat(`/proc/${pid}`).then(
    () => true,
    () => false,
  );
