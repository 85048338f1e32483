/** Builds the default guest image out of distribution packages: no Docker, no root, nothing installed on the host. */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { copyFile, mkdir, readdir, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { ForkdError } from '../../contract/errors.js';
import { AGENT_GENERATION } from '../../contract/guest.js';
import { Apt, type Package } from './apt.js';
import { lookUp, makeStaging, publish } from './cache.js';
import { makeMergedLinks, unpackDeb } from './deb.js';
import { makeExt4 } from './filesystem.js';
import { buildInitrd } from './initrd.js';
import { belongsInGuest, isDropped, isKernelPackage, KERNEL_METAPACKAGES, USERLAND } from './packages.js';
import { compileAgent, compileTree, pythonVersionOf } from './python.js';
import { BUILDER_VERSION, readGuestSources, sourceDigest } from './sources.js';
import { finishTree } from './tree.js';
import type { GuestImage, ImageFile, ImageRecord, Progress } from './types.js';

export interface BuildOptions {
  cacheDir: string;
  onProgress?: Progress;
  signal?: AbortSignal;
}

/** The image that fits this installation, if it has been built. */
export const findImage = (cacheDir: string): GuestImage | undefined =>
  lookUp(cacheDir, sourceDigest(readGuestSources()));

/** The image that fits this installation, built now if need be. */
export const buildDefaultImage = async (options: BuildOptions): Promise<GuestImage> => {
  const found = findImage(options.cacheDir);
  if (found) return found;
  const staging = await makeStaging(options.cacheDir);
  try {
    return await build(options, staging);
  } catch (error) {
    throw options.signal?.aborted ? new ForkdError('CANCELLED') : error;
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
};

interface Trees {
  root: string;
  kernel: string;
  packages: Package[];
}

/** Packages beyond those of the default guest. What is named here stays, also if it is one that guests do without. */
export interface MorePackages {
  packages: string[];
  /** Left out, though something says that it needs them. */
  without: string[];
}

/** The root file system of the default guest with more packages in it: a directory below `staging`. Returns it with their versions. */
export const buildTree = async (
  staging: string,
  more: MorePackages,
  progress: Progress,
  signal?: AbortSignal,
): Promise<Pick<Trees, 'root' | 'packages'>> => {
  const trees = await unpackPackages(staging, progress, signal, more);
  progress('preparing the root file system', 0.5);
  await finishTree(trees.root, signal);
  await compileTree(trees.root, signal);
  return trees;
};

const build = async (options: BuildOptions, staging: string): Promise<GuestImage> => {
  const progress = options.onProgress ?? (() => undefined);
  const trees = await unpackPackages(staging, progress, options.signal);
  progress('preparing the root file system', 0.5);
  await finishTree(trees.root, options.signal);
  await compileTree(trees.root, options.signal);
  const result = join(staging, 'image');
  await mkdir(result);
  progress('writing the initramfs', 0.75);
  const kernelVersion = await writeBootFiles(trees, result, options.signal);
  progress('writing the root disk', 0.8);
  await makeExt4(trees.root, join(result, 'rootfs.ext4'), options.signal);
  progress('hashing', 0.95);
  const record = await describe(trees, result, kernelVersion);
  await writeFile(join(result, 'image.json'), `${JSON.stringify(record, null, 2)}\n`);
  const image = await publish(result, options.cacheDir, record);
  progress('image ready', 1);
  return image;
};

/** With `more`, without a kernel. */
const unpackPackages = async (
  staging: string,
  progress: Progress,
  signal?: AbortSignal,
  more?: MorePackages,
): Promise<Trees> => {
  const belongs = (name: string): boolean =>
    (belongsInGuest(name) || more?.packages.includes(name) === true) && more?.without.includes(name) !== true;
  const trees = { root: join(staging, 'root'), kernel: join(staging, 'kernel') };
  const apt = await Apt.open(join(staging, 'apt'), signal);
  const { packages, files } = await apt.withFreshLists(async () => {
    progress('choosing packages', 0.02);
    const [kernel, userland] = await Promise.all([
      more ? [] : apt.firstClosure(KERNEL_METAPACKAGES),
      apt.closure([...USERLAND, ...(more?.packages ?? [])]),
    ]);
    const kernelPackages = kernel.filter(({ name }) => isKernelPackage(name));
    const packages = [...kernelPackages, ...userland.filter(({ name }) => belongs(name))];
    progress(`downloading ${packages.length} packages`, 0.1);
    return { packages, files: await apt.download(packages, join(staging, 'debs')) };
  });
  await makeMergedLinks(trees.root);
  await mkdir(trees.kernel);
  for (const [index, { name }] of packages.entries()) {
    progress(`unpacking ${name}`, 0.25 + (0.25 * index) / packages.length);
    const deb = files.get(name) ?? '';
    if (isKernelPackage(name)) await unpackDeb(deb, trees.kernel, () => true, signal);
    else await unpackDeb(deb, trees.root, (path) => !isDropped(path), signal);
  }
  return { ...trees, packages };
};

/** Kernel and initramfs. Returns the kernel's version. */
const writeBootFiles = async (trees: Trees, result: string, signal?: AbortSignal): Promise<string> => {
  const [version] = await readdir(join(trees.kernel, 'usr/lib/modules'));
  if (version === undefined)
    throw new ForkdError('IMAGE_BUILD_FAILED', { reason: 'the kernel package has no modules' });
  await copyFile(join(trees.kernel, `boot/vmlinuz-${version}`), join(result, 'vmlinuz'));
  await buildInitrd({
    out: join(result, 'initrd.img'),
    modulesDir: join(trees.kernel, 'usr/lib/modules', version),
    busybox: join(trees.root, 'usr/bin/busybox'),
    bytecode: await compileAgent(trees.root, readGuestSources(), signal),
  });
  return version;
};

const describe = async (trees: Trees, result: string, kernelVersion: string): Promise<ImageRecord> => {
  const packages = Object.fromEntries(trees.packages.map(({ name, version }) => [name, version]).sort());
  const sources = sourceDigest(readGuestSources());
  const digest = createHash('sha256')
    .update(JSON.stringify([BUILDER_VERSION, sources, packages]))
    .digest('hex')
    .slice(0, 32);
  return {
    format: 1,
    digest,
    sourceDigest: sources,
    builtAt: new Date().toISOString(),
    agentGeneration: AGENT_GENERATION,
    kernelVersion,
    pythonVersion: await pythonVersionOf(trees.root),
    rootfsType: 'ext4',
    files: {
      kernel: await describeFile(result, 'vmlinuz'),
      initrd: await describeFile(result, 'initrd.img'),
      rootfs: await describeFile(result, 'rootfs.ext4'),
    },
    packages,
  };
};

const describeFile = async (dir: string, name: string): Promise<ImageFile> => {
  const hash = createHash('sha256');
  await pipeline(createReadStream(join(dir, name), { highWaterMark: 1024 * 1024 }), hash);
  return { name, bytes: (await stat(join(dir, name))).size, sha256: hash.digest('hex') };
};
