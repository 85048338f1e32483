/** Unpacks Debian packages into a tree, without running any of their scripts. */
import { spawn } from 'node:child_process';
import { mkdir, symlink } from 'node:fs/promises';
import { basename, dirname, join, relative } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { type ExtractOptions, extract, type Headers } from 'tar-fs';
import { ForkdError } from '../../contract/errors.js';
import { commandEnv, toolMissing } from './command.js';

const MERGED = ['bin', 'sbin', 'lib', 'lib32', 'lib64', 'libx32'];

/** Path of a package's file inside a merged-usr tree: packages still carry /bin and /lib. */
export const mergedPath = (name: string): string => {
  const path = name.replace(/^(\.?\/)+/, '');
  const top = path.split('/', 1)[0] ?? '';
  return MERGED.includes(top) ? `usr/${path}` : path;
};

/** The links that make /bin, /lib ... point into /usr. Made once, before anything is unpacked. */
export const makeMergedLinks = async (tree: string): Promise<void> => {
  for (const top of ['bin', 'sbin', 'lib', 'lib64']) {
    await mkdir(join(tree, 'usr', top), { recursive: true });
    await symlink(`usr/${top}`, join(tree, top));
  }
};

/** Unpacks one package; `keep` decides by merged path. */
export const unpackDeb = async (
  deb: string,
  tree: string,
  keep: (path: string) => boolean,
  signal?: AbortSignal,
): Promise<void> => {
  const child = spawn('dpkg-deb', ['--fsys-tarfile', deb], {
    env: commandEnv(),
    stdio: ['ignore', 'pipe', 'inherit'],
    ...(signal === undefined ? {} : { signal }),
  });
  const ended = new Promise<number>((resolve, reject) => {
    child.on('error', (error: NodeJS.ErrnoException) =>
      reject(error.code === 'ENOENT' ? toolMissing('dpkg-deb') : error),
    );
    child.on('close', (status) => resolve(status ?? 1));
  });
  const options: ExtractOptions & { validateSymlinks: boolean } = {
    map: mergeHeader,
    ignore: (_, header) => isIgnored(header, keep),
    // Packages have links that lead to links, which the check refuses. apt has verified who made these archives.
    validateSymlinks: false,
  };
  const unpacked = pipeline(child.stdout, extract(tree, options));
  const [status] = await Promise.all([ended, unpacked]);
  if (status !== 0) throw new ForkdError('IMAGE_BUILD_FAILED', { reason: `${basename(deb)} cannot be unpacked` });
};

const mergeHeader = (header: Headers): Headers => {
  header.name = mergedPath(header.name);
  const link = header as Headers & { linkname?: string };
  if (header.type === 'link' && link.linkname) link.linkname = mergedPath(link.linkname);
  // An absolute link would point into the host while the tree is worked on; tar-fs refuses it for that reason.
  if (header.type === 'symlink' && link.linkname?.startsWith('/')) {
    link.linkname = relative(dirname(header.name), mergedPath(link.linkname));
  }
  return header;
};

const isIgnored = (header: Headers | undefined, keep: (path: string) => boolean): boolean => {
  if (!header) return false;
  const path = mergedPath(header.name);
  return path === '' || !keep(header.type === 'directory' ? `${path.replace(/\/$/, '')}/` : path);
};
