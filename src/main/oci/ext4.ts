/**
 * Makes the root disk of a tree. mkfs.ext4 takes what the host has; what this user could not give the files there (owners, capabilities, devices) is
 * set in the file system afterwards by debugfs, so nobody needs to be root.
 */
import { rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { command, lastLines, mustRun } from '../image/command.js';
import { makeExt4 } from '../image/filesystem.js';
import { ForkdError } from '../../contract/errors.js';
import type { Node, Tree } from './tree.js';

/** What a disk has beyond what is in it. */
export interface DiskRoom {
  /** The least size of the disk. */
  minBytes: number;
  bytes?: number;
  inodes?: number;
}

const measured = (tree: Tree, { minBytes, bytes = 0, inodes = 0 }: DiskRoom) => {
  const needed = tree.measure();
  return { blocks: needed.blocks + bytes / 4096, inodes: needed.inodes + inodes, minBytes };
};

/** `work` is a directory for files that are of no use afterwards. Throws IMAGE_BUILD_FAILED, an Error for a name that cannot be. */
export const writeDisk = async (
  tree: Tree,
  out: string,
  work: string,
  room: DiskRoom,
  signal?: AbortSignal,
): Promise<void> => {
  const rest = tree.finish();
  await makeExt4(tree.dir, out, signal, measured(tree, room));
  if (rest.length === 0) return;
  const script = join(work, 'debugfs');
  const values: Buffer[] = [];
  const lines = rest.flatMap((node) => commandsOf(node, (value) => join(work, `xattr-${values.push(value) - 1}`)));
  await Promise.all(values.map((value, i) => writeFile(join(work, `xattr-${i}`), value)));
  await writeFile(script, `${lines.join('\n')}\n`, 'latin1');
  const { status, stderr } = await command('debugfs', ['-w', '-f', script, out], { signal });
  // It goes on after a command that fails, and says so on stderr, behind its own name and version.
  const problems = stderr.split('\n').filter((line) => line !== '' && !line.startsWith('debugfs '));
  if (status !== 0 || problems.length > 0)
    throw new ForkdError('IMAGE_BUILD_FAILED', { reason: `debugfs: ${lastLines(problems.join('\n'))}` });
  // What it did is a file system still.
  await mustRun('e2fsck', ['-fn', out], { signal });
  await Promise.all([script, ...values.map((_, i) => join(work, `xattr-${i}`))].map((path) => rm(path)));
};

const TYPE_BITS = {
  file: 0o100000,
  directory: 0o040000,
  symlink: 0o120000,
  character: 0o020000,
  block: 0o060000,
  fifo: 0o010000,
};

const commandsOf = (node: Node, store: (value: Buffer) => string): string[] => {
  const [path = '', ...others] = node.paths;
  if (node.paths.some((one) => /[\n\r]/.test(one)))
    throw new Error(`the name ${JSON.stringify(path)} has a line break`);
  const name = quoted(path === '' ? '/' : path);
  const lines: string[] = [];
  if (node.kind === 'character' || node.kind === 'block' || node.kind === 'fifo') {
    const slash = path.lastIndexOf('/');
    const numbers = node.kind === 'fifo' ? 'p' : `${node.kind === 'character' ? 'c' : 'b'} ${node.major} ${node.minor}`;
    lines.push(
      `cd ${quoted(path.slice(0, slash) || '/')}`,
      `mknod ${quoted(path.slice(slash + 1))} ${numbers}`,
      'cd /',
    );
    lines.push(...others.map((other) => `link ${name} ${quoted(other)}`));
    if (others.length > 0) lines.push(`sif ${name} links_count ${node.paths.length}`);
  }
  lines.push(`sif ${name} mode 0${(TYPE_BITS[node.kind] | (node.kind === 'symlink' ? 0o777 : node.mode)).toString(8)}`);
  lines.push(
    `sif ${name} uid ${node.uid}`,
    `sif ${name} gid ${node.gid}`,
    `sif ${name} mtime @${Math.floor(node.mtime)}`,
  );
  for (const [key, value] of node.xattrs)
    if (isKept(key)) lines.push(`ea_set -f ${quoted(store(value))} ${name} ${quoted(key)}`);
  return lines;
};

/** The others say how a host's file system stacked its layers, or are stored in another form. */
const isKept = (xattr: string): boolean =>
  /^(user|security|trusted)\.[\x21-\x7e]{1,200}$/.test(xattr) &&
  !xattr.startsWith('trusted.overlay.') &&
  xattr !== 'security.selinux';

/** In double quotes, a double quote is doubled. */
const quoted = (text: string): string => `"${text.replaceAll('"', '""')}"`;
