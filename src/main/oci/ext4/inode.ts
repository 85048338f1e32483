/** Inodes, and what hangs on them: trees of extents, blocks of names. */
import type { Disk } from './disk.js';
import { BLOCK, type Extent, INODE_BYTES } from './layout.js';

export type Kind = 'file' | 'directory' | 'symlink' | 'character' | 'block' | 'fifo';

const TYPE_BITS: Record<Kind, number> = {
  file: 0o100000,
  directory: 0o040000,
  symlink: 0o120000,
  character: 0o020000,
  block: 0o060000,
  fifo: 0o010000,
};

/** As names of a directory say it. */
const TYPE_CODES: Record<Kind, number> = { file: 1, directory: 2, character: 3, block: 4, fifo: 5, symlink: 7 };

const EXTENTS_FLAG = 0x80000;
const EXTENT_MAGIC = 0xf30a;
const EXTENT_BYTES = 12;
const EXTENTS_IN_INODE = 4;
const EXTENTS_IN_BLOCK = Math.floor(BLOCK / EXTENT_BYTES) - 1;
const EXTRA_BYTES = 32;
/** No file has more. Of a directory more are not counted: 1 stands for any number. */
export const LINKS_MAX = 65_000;
/** Of a symbolic link, in the inode. */
const INLINE_TARGET_MAX = 59;

export interface InodeFields {
  kind: Kind;
  mode: number;
  uid: number;
  gid: number;
  mtime: number;
  links: number;
  size: number;
  /** All 60 bytes of `i_block`. */
  content: Buffer;
  isExtents: boolean;
  /** On the disk, for whatever it is. */
  blocks: number;
  xattrBlock: number;
}

export const writeInode = (into: Buffer, fields: InodeFields): void => {
  const { kind, mode, uid, gid, size, content, blocks, xattrBlock } = fields;
  const seconds = Math.floor(fields.mtime);
  into.writeUInt16LE(TYPE_BITS[kind] | (kind === 'symlink' ? 0o777 : mode), 0);
  into.writeUInt16LE(uid & 0xffff, 2);
  into.writeUInt32LE(size % 2 ** 32, 4);
  for (const at of [8, 12, 16]) into.writeUInt32LE(seconds % 2 ** 32, at);
  into.writeUInt16LE(gid & 0xffff, 24);
  into.writeUInt16LE(fields.links > LINKS_MAX && kind === 'directory' ? 1 : fields.links, 26);
  into.writeUInt32LE(blocks * (BLOCK / 512), 28);
  into.writeUInt32LE(fields.isExtents ? EXTENTS_FLAG : 0, 32);
  content.copy(into, 40);
  into.writeUInt32LE(xattrBlock, 104);
  into.writeUInt32LE(Math.floor(size / 2 ** 32), 108);
  into.writeUInt16LE(uid >>> 16, 120);
  into.writeUInt16LE(gid >>> 16, 122);
  into.writeUInt16LE(EXTRA_BYTES, 128);
  // Two bits more for seconds after 2038, for each of the three and for the birth.
  for (const at of [132, 136, 140, 148]) into.writeUInt32LE(epoch(seconds), at);
  into.writeUInt32LE(seconds % 2 ** 32, 144);
};

/** Seconds are signed, and these bits are added above them. */
const epoch = (seconds: number): number => Math.round((seconds - (seconds | 0)) / 2 ** 32) & 3;

export const newInode = (): Buffer => Buffer.alloc(INODE_BYTES);

export interface Mapped {
  content: Buffer;
  isExtents: boolean;
  /** Those of the tree itself. */
  blocks: number;
}

/** A tree of extents as flat as can be, with its root in the inode. */
export const mapExtents = async (extents: Extent[], disk: Disk): Promise<Mapped> => {
  let entries = extents.map(leafEntry);
  let [depth, blocks] = [0, 0];
  let firsts = extents.map(({ logical }) => logical);
  while (entries.length > EXTENTS_IN_INODE) {
    const [above, heads]: [Buffer[], number[]] = [[], []];
    for (let at = 0; at < entries.length; at += EXTENTS_IN_BLOCK) {
      const block = await disk.add(extentNode(entries.slice(at, at + EXTENTS_IN_BLOCK), depth, BLOCK));
      above.push(indexEntry(firsts[at] as number, block));
      heads.push(firsts[at] as number);
      blocks++;
    }
    [entries, firsts] = [above, heads];
    depth++;
  }
  return { content: extentNode(entries, depth, 60), isExtents: true, blocks };
};

const extentNode = (entries: Buffer[], depth: number, bytes: number): Buffer => {
  const node = Buffer.alloc(bytes);
  node.writeUInt16LE(EXTENT_MAGIC, 0);
  node.writeUInt16LE(entries.length, 2);
  node.writeUInt16LE(Math.floor(bytes / EXTENT_BYTES) - 1, 4);
  node.writeUInt16LE(depth, 6);
  for (const [i, entry] of entries.entries()) entry.copy(node, (i + 1) * EXTENT_BYTES);
  return node;
};

const leafEntry = ({ logical, block, count }: Extent): Buffer => {
  const entry = Buffer.alloc(EXTENT_BYTES);
  entry.writeUInt32LE(logical, 0);
  entry.writeUInt16LE(count, 4);
  entry.writeUInt32LE(block, 8);
  return entry;
};

const indexEntry = (logical: number, block: number): Buffer => {
  const entry = Buffer.alloc(EXTENT_BYTES);
  entry.writeUInt32LE(logical, 0);
  entry.writeUInt32LE(block, 4);
  return entry;
};

/** A short one is in the inode itself. */
export const mapTarget = async (target: Buffer, disk: Disk): Promise<Mapped & { dataBlocks: number }> => {
  if (target.length <= INLINE_TARGET_MAX) {
    const content = Buffer.alloc(60);
    target.copy(content);
    return { content, isExtents: false, blocks: 0, dataBlocks: 0 };
  }
  const block = await disk.add(target);
  return { ...(await mapExtents([{ logical: 0, block, count: 1 }], disk)), dataBlocks: 1 };
};

/** Of a device. */
export const mapDevice = (major: number, minor: number): Mapped => {
  const content = Buffer.alloc(60);
  if (major < 256 && minor < 256) content.writeUInt32LE((major << 8) | minor, 0);
  else content.writeUInt32LE(((minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xfff00) << 12)) >>> 0, 4);
  return { content, isExtents: false, blocks: 0 };
};

export interface Name {
  name: Buffer;
  inode: number;
  kind: Kind;
}

/** The blocks of a directory: the last name of each takes what is left of it. */
export const nameBlocks = (names: Name[]): Buffer => {
  const blocks: Buffer[] = [];
  let block = Buffer.alloc(BLOCK);
  let [at, last] = [0, 0];
  const close = (): void => {
    block.writeUInt16LE(BLOCK - last, last + 4);
    blocks.push(block);
  };
  for (const { name, inode, kind } of names) {
    const bytes = (8 + name.length + 3) & ~3;
    if (at + bytes > BLOCK) {
      close();
      block = Buffer.alloc(BLOCK);
      at = 0;
    }
    block.writeUInt32LE(inode, at);
    block.writeUInt16LE(bytes, at + 4);
    block[at + 6] = name.length;
    block[at + 7] = TYPE_CODES[kind];
    name.copy(block, at + 8);
    last = at;
    at += bytes;
  }
  close();
  return Buffer.concat(blocks);
};
