/** Makes the read-only root disk. */
import type { Dirent } from 'node:fs';
import { truncate } from 'node:fs/promises';
import { lstat, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { mustRun } from './command.js';

const BLOCK = 4096;

/**
 * ext4 without a journal, just large enough. Nobody ever writes to it (the guest mounts it read-only below an overlay,
 * the VMM opens it read-only), so free blocks and inodes would only be bytes to carry. Not compressed: under emulation,
 * inflating a page costs several times what reading it does.
 */
export const makeExt4 = async (
  tree: string,
  out: string,
  signal?: AbortSignal,
  measured?: { blocks: number; inodes: number; minBytes?: number },
): Promise<void> => {
  const { blocks, inodes } = measured ?? (await measure(tree));
  // An inode is 256 bytes; bitmaps and group tables take under 2 %.
  const needed = Math.max(
    Math.ceil((blocks + (inodes * 256) / BLOCK) * 1.03) + 512,
    Math.ceil((measured?.minBytes ?? 0) / BLOCK),
  );
  await truncate(out, 0).catch(() => undefined);
  await mustRun(
    'mkfs.ext4',
    [
      '-q',
      '-F',
      '-d',
      tree,
      '-b',
      String(BLOCK),
      '-I',
      '256',
      '-N',
      String(inodes + 64),
      '-m',
      '0',
      '-L',
      'forkd-root',
      '-O',
      '^has_journal,^resize_inode,^metadata_csum,^64bit,^huge_file',
      '-E',
      'root_owner=0:0,lazy_itable_init=0,nodiscard',
      out,
      String(needed),
    ],
    // Fixed, so that the same tree gives a file system with the same name and hash seed.
    { signal, env: { E2FSPROGS_FAKE_TIME: '1700000000' } },
  );
};

/** What a file system of it needs. */
export const measure = async (tree: string): Promise<{ blocks: number; inodes: number }> => {
  let blocks = 0;
  let inodes = 0;
  const visit = async (dir: string): Promise<void> => {
    const entries: Dirent[] = await readdir(dir, { withFileTypes: true });
    for (const entry of entries) {
      inodes += 1;
      const path = join(dir, entry.name);
      if (entry.isDirectory()) {
        blocks += 1;
        await visit(path);
      } else if (entry.isFile()) blocks += Math.ceil((await lstat(path)).size / BLOCK);
    }
  };
  await visit(tree);
  return { blocks, inodes };
};
