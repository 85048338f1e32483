/** Extended attributes of one inode, in a block of their own. */
import { BLOCK } from './layout.js';

const MAGIC = 0xea020000;
const HEADER_BYTES = 32;
const ENTRY_BYTES = 16;
const PREFIXES: Record<string, number> = { user: 1, trusted: 4, security: 6 };

interface Entry {
  prefix: number;
  name: Buffer;
  value: Buffer;
}

/** The others say how a host's file system stacked its layers, or are stored in another form. */
const isKept = (xattr: string): boolean =>
  /^(user|security|trusted)\.[\x21-\x7e]{1,200}$/.test(xattr) &&
  !xattr.startsWith('trusted.overlay.') &&
  xattr !== 'security.selinux';

/** Undefined when none of them is kept. Throws an Error when they are too many. */
export const xattrBlock = (xattrs: Map<string, Buffer>): Buffer | undefined => {
  const entries = [...xattrs]
    .filter(([key]) => isKept(key))
    .map(([key, value]): Entry => {
      const dot = key.indexOf('.');
      return { prefix: PREFIXES[key.slice(0, dot)] as number, name: Buffer.from(key.slice(dot + 1), 'latin1'), value };
    })
    .sort((a, b) => a.prefix - b.prefix || a.name.length - b.name.length || Buffer.compare(a.name, b.name));
  if (entries.length === 0) return undefined;
  const block = Buffer.alloc(BLOCK);
  block.writeUInt32LE(MAGIC, 0);
  block.writeUInt32LE(1, 4);
  block.writeUInt32LE(1, 8);
  let [at, end, all] = [HEADER_BYTES, BLOCK, 0];
  for (const { prefix, name, value } of entries) {
    const entryBytes = ENTRY_BYTES + aligned(name.length);
    end -= aligned(value.length);
    // Four zeros end the list.
    if (at + entryBytes + 4 > end) throw new Error('the extended attributes of an entry are too large');
    value.copy(block, end);
    const hash = hashOf(name, block.subarray(end, end + aligned(value.length)));
    block[at] = name.length;
    block[at + 1] = prefix;
    block.writeUInt16LE(end, at + 2);
    block.writeUInt32LE(value.length, at + 8);
    block.writeUInt32LE(hash, at + 12);
    name.copy(block, at + ENTRY_BYTES);
    at += entryBytes;
    all = mixed(all, 16, hash);
  }
  block.writeUInt32LE(all, 12);
  return block;
};

const aligned = (bytes: number): number => (bytes + 3) & ~3;

const mixed = (hash: number, shift: number, word: number): number =>
  ((hash << shift) ^ (hash >>> (32 - shift)) ^ word) >>> 0;

const hashOf = (name: Buffer, value: Buffer): number => {
  let hash = 0;
  for (const byte of name) hash = mixed(hash, 5, byte);
  for (let at = 0; at < value.length; at += 4) hash = mixed(hash, 16, value.readUInt32LE(at));
  return hash;
};
