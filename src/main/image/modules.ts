/** Kernel modules for the initramfs, each after the modules it depends on. */
import { execFileSync } from 'node:child_process';
import type { Dirent } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { decompress } from 'zstd-napi';
import { ForkdError } from '../../contract/errors.js';
import { toolMissing } from './command.js';

export interface KernelModule {
  name: string;
  group: string;
  data: Buffer;
}

/**
 * What init loads, by occasion: `core` always; the others only when the device or file system is there, because each
 * module costs tens of milliseconds under emulation. Names that the kernel has built in are simply absent.
 */
export const MODULE_GROUPS: Record<string, string[]> = {
  core: ['virtio_mmio', 'virtio_blk', 'virtio_console', 'overlay'],
  pci: ['virtio_pci'],
  net: ['virtio_net'],
  rng: ['virtio-rng'],
  ext4: ['crc32c_generic', 'ext4'],
  squashfs: ['squashfs'],
  erofs: ['erofs'],
};

/** Reads the modules of `groups` and their dependencies out of `modulesDir` (/lib/modules/VERSION). */
export const collectModules = async (modulesDir: string): Promise<KernelModule[]> => {
  const files = await indexModules(modulesDir);
  const chosen = new Map<string, KernelModule>();
  for (const [group, names] of Object.entries(MODULE_GROUPS)) {
    for (const name of names) await visit(name, group, files, chosen);
  }
  return [...chosen.values()];
};

const visit = async (
  name: string,
  group: string,
  files: Map<string, string>,
  chosen: Map<string, KernelModule>,
): Promise<void> => {
  const key = plainName(name);
  const file = files.get(key);
  if (file === undefined || chosen.has(key)) return;
  const data = await readModule(file);
  for (const dependency of dependenciesOf(data)) await visit(dependency, group, files, chosen);
  chosen.set(key, { name: key, group, data });
};

/** Every module file under the kernel's directory, by name; `-` and `_` are the same letter in a module's name. */
const indexModules = async (modulesDir: string): Promise<Map<string, string>> => {
  let entries: Dirent[];
  try {
    entries = await readdir(join(modulesDir, 'kernel'), { recursive: true, withFileTypes: true });
  } catch (error) {
    throw new ForkdError('IMAGE_BUILD_FAILED', { reason: `no kernel modules in ${modulesDir}` }, error);
  }
  const modules = entries.filter((entry) => /\.ko(\.(xz|zst|gz))?$/.test(entry.name));
  return new Map(modules.map((entry) => [plainName(entry.name), join(entry.parentPath ?? entry.path, entry.name)]));
};

const plainName = (name: string): string =>
  basename(name)
    .replace(/\.ko(\.\w+)?$/, '')
    .replaceAll('-', '_');

const readModule = async (file: string): Promise<Buffer> => {
  const bytes = await readFile(file);
  if (file.endsWith('.zst')) return decompress(bytes);
  if (file.endsWith('.gz')) return gunzipSync(bytes);
  if (file.endsWith('.xz')) return unxz(bytes);
  return bytes;
};

const unxz = (bytes: Buffer): Buffer => {
  try {
    return execFileSync('xz', ['--decompress', '--stdout'], { input: bytes, maxBuffer: 64 * 1024 * 1024 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') throw toolMissing('xz');
    throw error;
  }
};

/**
 * The `depends=` line of the module's own .modinfo section. Debian's package has no modules.dep (its postinst makes
 * it), and this needs no depmod.
 */
export const dependenciesOf = (module: Buffer): string[] => {
  const at = module.indexOf('\0depends=');
  if (at < 0) return [];
  const start = at + '\0depends='.length;
  const text = module.toString('latin1', start, module.indexOf(0, start));
  return text === '' ? [] : text.split(',');
};
