/** Makes a file system of a tree whose contents are on the disk already. Nothing but this process writes to it, so nobody needs to be root. */
import type { Node, Tree } from '../tree.js';
import type { Disk } from './disk.js';
import {
  LINKS_MAX,
  mapDevice,
  mapExtents,
  type Mapped,
  mapTarget,
  type Name,
  nameBlocks,
  writeInode,
} from './inode.js';
import {
  BLOCK,
  descriptorBlocks,
  FIRST_INODE,
  GROUP_BLOCKS,
  GROUPS_MAX,
  hasSuperblock,
  INODE_BYTES,
  INODES_PER_BLOCK,
  INODES_PER_GROUP_MAX,
  RESERVED_BLOCKS,
  ROOT_INODE,
} from './layout.js';
import { descriptors, type Group, superblock, type Totals } from './super.js';
import { xattrBlock } from './xattr.js';

/** What a disk has beyond what is in it. */
export interface DiskRoom {
  /** The least size of the disk. */
  minBytes: number;
  bytes?: number;
  inodes?: number;
}

const LOST_AND_FOUND = 'lost+found';
/** A last group has its own bitmaps and table, and as many blocks more at least. */
const SPARE_BLOCKS = 32;

/** Throws an Error for something that no file system can hold. */
export const writeExt4 = async (tree: Tree, disk: Disk, room: DiskRoom): Promise<void> => {
  tree.ensureDirectory(LOST_AND_FOUND, 0o700);
  const numbers = numberNodes(tree);
  // The last one: the root's is below the first.
  const count = FIRST_INODE + numbers.size - 2;
  const inodes = Buffer.alloc((count + 1) * INODE_BYTES);
  const directories: number[] = [];
  for (const [directory, parent] of walk(tree.root)) await store(directory, parent, numbers, inodes, disk, directories);
  const shape = shapeOf(disk.end, count + (room.inodes ?? 0), room);
  const tableBlocks = shape.inodesPerGroup / INODES_PER_BLOCK;
  const places = Array.from({ length: shape.groups }, (_, i) => place(disk, i, tableBlocks));
  const blocks = shape.blocksFrom(disk.end);
  const bits = usedBlocks(disk, blocks, shape.groups);
  for (const { inodeTable, blockBitmap, inodeBitmap } of places) {
    setBits(bits, inodeTable, tableBlocks, true);
    setBits(bits, blockBitmap, 1, true);
    setBits(bits, inodeBitmap, 1, true);
  }
  const groups: Group[] = [];
  for (const [i, place] of places.entries()) {
    const first = i * shape.inodesPerGroup;
    const used = Math.max(0, Math.min(shape.inodesPerGroup, count - first));
    const own = bits.subarray(i * BLOCK, (i + 1) * BLOCK);
    // Inode 1 is the first of the table.
    const table = inodes.subarray((first + 1) * INODE_BYTES, (first + 1 + used) * INODE_BYTES);
    if (used > 0) await disk.put(place.inodeTable, table);
    await disk.put(place.blockBitmap, own);
    await disk.put(place.inodeBitmap, inodeBits(used, shape.inodesPerGroup));
    groups.push({
      ...place,
      freeBlocks: zerosIn(own),
      freeInodes: shape.inodesPerGroup - used,
      directories: directories.filter((inode) => Math.floor((inode - 1) / shape.inodesPerGroup) === i).length,
    });
  }
  const freeBlocks = groups.reduce((sum, group) => sum + group.freeBlocks, 0);
  await writeSuperblocks(disk, { blocks, freeBlocks, inodesPerGroup: shape.inodesPerGroup, groups });
  await disk.finish(blocks);
};

type Place = Pick<Group, 'inodeTable' | 'blockBitmap' | 'inodeBitmap'>;

/** Behind the contents, for groups that they fill. In the others at their beginning: resize2fs can take those away again. */
const place = (disk: Disk, group: number, tableBlocks: number): Place => {
  const begin = group * GROUP_BLOCKS;
  if (begin < disk.end)
    return { inodeTable: disk.reserve(tableBlocks), blockBitmap: disk.reserve(1), inodeBitmap: disk.reserve(1) };
  const first = begin + (hasSuperblock(group) ? RESERVED_BLOCKS : 0);
  return { blockBitmap: first, inodeBitmap: first + 1, inodeTable: first + 2 };
};

const numberNodes = (tree: Tree): Map<Node, number> => {
  const numbers = new Map<Node, number>();
  for (const node of tree.nodes()) numbers.set(node, node === tree.root ? ROOT_INODE : FIRST_INODE + numbers.size - 1);
  return numbers;
};

/** Each directory with its parent, above before below. */
function* walk(root: Node): Generator<[directory: Node, parent: Node]> {
  const stack: [Node, Node][] = [[root, root]];
  for (let next = stack.pop(); next; next = stack.pop()) {
    yield next;
    for (const child of next[0].children?.values() ?? []) if (child.children) stack.push([child, next[0]]);
  }
}

/** A directory and everything in it that is none. */
const store = async (
  directory: Node,
  parent: Node,
  numbers: Map<Node, number>,
  inodes: Buffer,
  disk: Disk,
  directories: number[],
): Promise<void> => {
  const numberOf = (node: Node): number => numbers.get(node) as number;
  const names: Name[] = [
    { name: Buffer.from('.'), inode: numberOf(directory), kind: 'directory' },
    { name: Buffer.from('..'), inode: numberOf(parent), kind: 'directory' },
  ];
  let below = 0;
  for (const [name, node] of directory.children ?? []) {
    names.push({ name: Buffer.from(name, 'latin1'), inode: numberOf(node), kind: node.kind });
    if (node.children) below++;
    // Once, by whichever of its names comes first.
    else if (!isStored(inodes, numberOf(node))) await storeNode(node, numberOf(node), inodes, disk);
  }
  const content = nameBlocks(names);
  const block = disk.reserve(content.length / BLOCK);
  await disk.put(block, content);
  const count = content.length / BLOCK;
  const mapped = await mapExtents([{ logical: 0, block, count }], disk);
  directories.push(numberOf(directory));
  await put(directory, numberOf(directory), inodes, disk, {
    ...mapped,
    size: content.length,
    links: below + 2,
    dataBlocks: count,
  });
};

/** Its links are written last: they are never none. */
const isStored = (inodes: Buffer, inode: number): boolean => inodes.readUInt16LE(inode * INODE_BYTES + 26) > 0;

const storeNode = async (node: Node, inode: number, inodes: Buffer, disk: Disk): Promise<void> => {
  const links = node.paths.length;
  if (links > LINKS_MAX) throw new Error(`'${node.paths[0]}' has more than ${LINKS_MAX} names`);
  if (node.kind === 'file') {
    const dataBlocks = node.extents.reduce((sum, { count }) => sum + count, 0);
    const mapped = await mapExtents(node.extents, disk);
    await put(node, inode, inodes, disk, { ...mapped, size: node.size, links, dataBlocks });
  } else if (node.kind === 'symlink') {
    const target = Buffer.from(node.target, 'latin1');
    await put(node, inode, inodes, disk, { ...(await mapTarget(target, disk)), size: target.length, links });
  } else await put(node, inode, inodes, disk, { ...mapDevice(node.major, node.minor), size: 0, links, dataBlocks: 0 });
};

const put = async (
  node: Node,
  inode: number,
  inodes: Buffer,
  disk: Disk,
  { blocks, dataBlocks, ...rest }: Mapped & { size: number; links: number; dataBlocks: number },
): Promise<void> => {
  const xattrs = xattrBlock(node.xattrs);
  const xattrBlockAt = xattrs ? await disk.add(xattrs) : 0;
  const { kind, mode, uid, gid, mtime } = node;
  const all = blocks + dataBlocks + (xattrs ? 1 : 0);
  const fields = { kind, mode, uid, gid, mtime, ...rest, blocks: all, xattrBlock: xattrBlockAt };
  writeInode(inodes.subarray(inode * INODE_BYTES, (inode + 1) * INODE_BYTES), fields);
};

interface Shape {
  groups: number;
  inodesPerGroup: number;
  /** How many blocks the disk has, once all of them are placed. */
  blocksFrom(end: number): number;
}

/** How many groups: each more needs more tables, which need more blocks. */
const shapeOf = (end: number, inodes: number, room: DiskRoom): Shape => {
  const more = Math.ceil((room.bytes ?? 0) / BLOCK);
  const min = Math.ceil(room.minBytes / BLOCK);
  const whole = (last: number, lastGroup: number): number => {
    const blocks = Math.max(last + more, min);
    const rest = blocks % GROUP_BLOCKS;
    return rest > 0 && rest < lastGroup ? blocks - rest + lastGroup : blocks;
  };
  for (let groups = Math.ceil(inodes / INODES_PER_GROUP_MAX); ; groups++) {
    if (groups > GROUPS_MAX) throw new Error('it is larger than a disk can be');
    const inodesPerGroup = Math.ceil(inodes / groups / INODES_PER_BLOCK) * INODES_PER_BLOCK;
    const own = inodesPerGroup / INODES_PER_BLOCK + 2;
    const lastGroup = RESERVED_BLOCKS + own + SPARE_BLOCKS;
    const tables = groups * own;
    // One table may have to leave out what is before a superblock, for each that comes.
    const passed = Math.floor((end + tables) / GROUP_BLOCKS) - Math.floor(end / GROUP_BLOCKS) + 1;
    const most = whole(end + tables + passed * (own + RESERVED_BLOCKS), lastGroup);
    if (most > groups * GROUP_BLOCKS) continue;
    // As many groups as the tables are for.
    const least = (groups - 1) * GROUP_BLOCKS + lastGroup;
    return { groups, inodesPerGroup, blocksFrom: (last) => Math.max(whole(last, lastGroup), least) };
  }
};

const usedBlocks = (disk: Disk, blocks: number, groups: number): Buffer => {
  const bits = Buffer.alloc(groups * BLOCK);
  setBits(bits, 0, disk.end, true);
  for (const { block, count } of disk.free) setBits(bits, block, count, false);
  const head = 1 + descriptorBlocks(groups);
  for (let group = 0; group < groups; group++) {
    if (!hasSuperblock(group)) continue;
    setBits(bits, group * GROUP_BLOCKS, head, true);
    setBits(bits, group * GROUP_BLOCKS + head, RESERVED_BLOCKS - head, false);
  }
  setBits(bits, blocks, groups * GROUP_BLOCKS - blocks, true);
  return bits;
};

const inodeBits = (used: number, perGroup: number): Buffer => {
  const bits = Buffer.alloc(BLOCK);
  setBits(bits, 0, used, true);
  setBits(bits, perGroup, INODES_PER_GROUP_MAX - perGroup, true);
  return bits;
};

const setBits = (bits: Buffer, from: number, count: number, value: boolean): void => {
  const end = from + count;
  let at = from;
  const one = (bit: number): void => {
    const mask = 1 << (bit & 7);
    const byte = bits[bit >>> 3] as number;
    bits[bit >>> 3] = value ? byte | mask : byte & ~mask;
  };
  while (at < end && (at & 7) !== 0) one(at++);
  const bytes = Math.floor((end - at) / 8);
  if (bytes > 0) bits.fill(value ? 0xff : 0, at / 8, at / 8 + bytes);
  at += bytes * 8;
  while (at < end) one(at++);
};

const ZEROS_OF = Array.from({ length: 256 }, (_, byte) => 8 - byte.toString(2).replaceAll('0', '').length);

const zerosIn = (bits: Buffer): number => {
  let zeros = 0;
  for (const byte of bits) zeros += ZEROS_OF[byte] as number;
  return zeros;
};

const writeSuperblocks = async (disk: Disk, totals: Totals): Promise<void> => {
  const table = descriptors(totals.groups);
  for (let group = 0; group < totals.groups.length; group++) {
    if (!hasSuperblock(group)) continue;
    const block = Buffer.alloc(BLOCK);
    // The first of the disk leaves room for a boot sector.
    superblock(totals, group).copy(block, group === 0 ? 1024 : 0);
    await disk.put(group * GROUP_BLOCKS, block);
    await disk.put(group * GROUP_BLOCKS + 1, table);
  }
};
