/** The superblock and the descriptors of the groups. */
import { BLOCK, DESCRIPTOR_BYTES, descriptorBlocks, FIRST_INODE, GROUP_BLOCKS, INODE_BYTES } from './layout.js';

/** ext_attr, dir_index. */
const COMPATIBLE = 0x8 | 0x20;
/** filetype, extents, flex_bg: bitmaps and tables may lie anywhere. */
const INCOMPATIBLE = 0x2 | 0x40 | 0x200;
/** sparse_super, large_file, dir_nlink, extra_isize. */
const READ_ONLY_COMPATIBLE = 0x1 | 0x2 | 0x20 | 0x40;
/** Fixed, as the identity and the seed are: the same tree gives the same disk. */
const MADE_AT = 1_700_000_000;
const ID = Buffer.from('666f726b642d726f6f742d6469736b31', 'hex');

export interface Group {
  blockBitmap: number;
  inodeBitmap: number;
  inodeTable: number;
  freeBlocks: number;
  freeInodes: number;
  directories: number;
}

export interface Totals {
  blocks: number;
  freeBlocks: number;
  inodesPerGroup: number;
  groups: Group[];
}

/** As it is at the beginning of a group, without what is before it in the first block of the disk. */
export const superblock = ({ blocks, freeBlocks, inodesPerGroup, groups }: Totals, group: number): Buffer => {
  const s = Buffer.alloc(1024);
  const words: [at: number, value: number][] = [
    [0, inodesPerGroup * groups.length],
    [4, blocks],
    [12, freeBlocks],
    [16, groups.reduce((sum, { freeInodes }) => sum + freeInodes, 0)],
    [24, 2],
    [28, 2],
    [32, GROUP_BLOCKS],
    [36, GROUP_BLOCKS],
    [40, inodesPerGroup],
    [48, MADE_AT],
    [64, MADE_AT],
    [76, 1],
    [84, FIRST_INODE],
    [92, COMPATIBLE],
    [96, INCOMPATIBLE],
    [100, READ_ONLY_COMPATIBLE],
    // user_xattr, acl.
    [256, 0xc],
    [264, MADE_AT],
    // Hashes of names are of signed characters.
    [352, 1],
  ];
  for (const [at, value] of words) s.writeUInt32LE(value, at);
  const halves: [at: number, value: number][] = [
    [54, 0xffff],
    [56, 0xef53],
    // Clean; errors are passed over.
    [58, 1],
    [60, 1],
    [88, INODE_BYTES],
    [90, group],
    [348, 32],
    [350, 32],
  ];
  for (const [at, value] of halves) s.writeUInt16LE(value, at);
  ID.copy(s, 104);
  s.write('forkd-root', 120);
  ID.copy(s, 236);
  // Half MD4; 16 groups allocate together.
  s[252] = 1;
  s[372] = 4;
  return s;
};

export const descriptors = (groups: Group[]): Buffer => {
  const table = Buffer.alloc(descriptorBlocks(groups.length) * BLOCK);
  for (const [i, group] of groups.entries()) {
    const at = i * DESCRIPTOR_BYTES;
    table.writeUInt32LE(group.blockBitmap, at);
    table.writeUInt32LE(group.inodeBitmap, at + 4);
    table.writeUInt32LE(group.inodeTable, at + 8);
    table.writeUInt16LE(group.freeBlocks, at + 12);
    table.writeUInt16LE(group.freeInodes, at + 14);
    table.writeUInt16LE(group.directories, at + 16);
  }
  return table;
};
