/** The numbers of ext4 as it is written here: blocks of 4 KiB, inodes of 256 bytes, no journal, no checksums. */

export const BLOCK = 4096;
/** As many as one block of bits says. */
export const GROUP_BLOCKS = BLOCK * 8;
export const INODE_BYTES = 256;
export const INODES_PER_BLOCK = BLOCK / INODE_BYTES;
export const INODES_PER_GROUP_MAX = BLOCK * 8;
export const DESCRIPTOR_BYTES = 32;
const DESCRIPTORS_PER_BLOCK = BLOCK / DESCRIPTOR_BYTES;
/** Kept free for them behind each superblock: disks of up to 128 GiB. */
export const DESCRIPTOR_BLOCKS_MAX = 8;
export const GROUPS_MAX = DESCRIPTOR_BLOCKS_MAX * DESCRIPTORS_PER_BLOCK;
/** Of a superblock and what is behind it. */
export const RESERVED_BLOCKS = 1 + DESCRIPTOR_BLOCKS_MAX;

export const ROOT_INODE = 2;
/** The first ten are the file system's own. */
export const FIRST_INODE = 11;

/** Groups that begin with a copy of the superblock: 0, 1, and the powers of 3, 5 and 7. */
export const hasSuperblock = (group: number): boolean => {
  if (group <= 1) return true;
  return [3, 5, 7].some((base) => {
    let power = base;
    while (power < group) power *= base;
    return power === group;
  });
};

export const descriptorBlocks = (groups: number): number => Math.ceil(groups / DESCRIPTORS_PER_BLOCK);

/** Blocks of a file that lie one behind the other, there and on the disk. */
export interface Extent {
  /** The first, in the file. */
  logical: number;
  /** And on the disk. */
  block: number;
  count: number;
}
