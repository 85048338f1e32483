/**
 * A directory as a tar archive, as it comes. Names are bytes, since a file system knows no encoding. What goes away meanwhile is left out; so are
 * sockets, pipes and devices.
 */
import type { Stats } from 'node:fs';
import { lstat, open, readdir, readlink } from 'node:fs/promises';
import { errnoOf } from '../contract/errors.js';

const BLOCK = 512;
/** What is small is sent together: a message for each header and each rest of a block would take longer than the files. */
const PIECE_BYTES = 64 * 1024;
const NAME_BYTES = 100;
/** From here on a number does not fit its octal digits, and is written in binary. */
const octalMax = (width: number): number => 8 ** (width - 1);

export async function* packTree(root: string): AsyncGenerator<Buffer, void> {
  let held: Buffer[] = [];
  let bytes = 0;
  for await (const part of blocks(Buffer.from(root))) {
    held.push(part);
    bytes += part.length;
    if (bytes < PIECE_BYTES) continue;
    yield Buffer.concat(held);
    held = [];
    bytes = 0;
  }
  yield Buffer.concat([...held, Buffer.alloc(2 * BLOCK)]);
}

/** One after the other, each directory before what is in it; `root` itself is `.`. */
async function* blocks(root: Buffer): AsyncGenerator<Buffer, void> {
  const left = [Buffer.from('.')];
  for (let name = left.pop(); name; name = left.pop()) {
    const path = Buffer.concat([root, Buffer.from('/'), name]);
    const found = await unlessGone(name, lstat(path));
    if (found?.isDirectory()) {
      const names = await unlessGone(name, readdir(path, { encoding: 'buffer' }));
      if (!names) continue;
      yield header(name, '5', found);
      const inside = Buffer.concat([name, Buffer.from('/')]);
      for (const one of names.reverse()) left.push(Buffer.concat([inside, one]));
    } else if (found?.isSymbolicLink()) {
      const target = await unlessGone(name, readlink(path, { encoding: 'buffer' }));
      if (target) yield header(name, '2', found, target);
    } else if (found?.isFile()) yield* fileBlocks(name, path);
  }
}

async function* fileBlocks(name: Buffer, path: Buffer): AsyncGenerator<Buffer, void> {
  const file = await unlessGone(name, open(path));
  if (!file) return;
  try {
    const found = await file.stat();
    yield header(name, '0', found);
    // As many as were said: it may grow meanwhile.
    for (let left = found.size; left > 0; ) {
      const part = Buffer.allocUnsafe(Math.min(left, PIECE_BYTES));
      const { bytesRead } = await file.read(part, 0, part.length);
      if (bytesRead === 0) throw new Error(`'${path}' became shorter while it was read`);
      left -= bytesRead;
      yield part.subarray(0, bytesRead);
    }
    yield padding(found.size);
  } finally {
    await file.close();
  }
}

/** Undefined when it went away since it was listed. */
const unlessGone = async <T>(name: Buffer, work: Promise<T>): Promise<T | undefined> => {
  try {
    return await work;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT' && name.length > 1) return undefined;
    throw error;
  }
};

const header = (name: Buffer, type: string, found: Stats, target = Buffer.alloc(0)): Buffer => {
  const records = [
    ...(name.length > NAME_BYTES ? [record('path', name)] : []),
    ...(target.length > NAME_BYTES ? [record('linkpath', target)] : []),
  ];
  const block = plainHeader(name, type, found, target);
  if (records.length === 0) return block;
  // PAX: what does not fit its field stands in front.
  const more = Buffer.concat(records);
  const nobody = { mode: 0o644, uid: 0, gid: 0, size: more.length, mtimeMs: 0 };
  return Buffer.concat([plainHeader(Buffer.from('pax'), 'x', nobody), more, padding(more.length), block]);
};

type Facts = Pick<Stats, 'mode' | 'uid' | 'gid' | 'size' | 'mtimeMs'>;

const plainHeader = (name: Buffer, type: string, found: Facts, target = Buffer.alloc(0)): Buffer => {
  const block = Buffer.alloc(BLOCK);
  name.copy(block, 0, 0, NAME_BYTES);
  number(block, 100, 8, found.mode & 0o7777);
  number(block, 108, 8, found.uid);
  number(block, 116, 8, found.gid);
  number(block, 124, 12, type === '0' || type === 'x' ? found.size : 0);
  number(block, 136, 12, Math.max(0, Math.floor(found.mtimeMs / 1000)));
  block.write(`        ${type}`, 148);
  target.copy(block, 157, 0, NAME_BYTES);
  block.write('ustar\x0000', 257);
  const sum = block.reduce((all, byte) => all + byte, 0);
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148);
  return block;
};

const number = (block: Buffer, at: number, width: number, value: number): void => {
  if (value < octalMax(width)) block.write(`${value.toString(8).padStart(width - 1, '0')}\0`, at);
  else {
    block[at] = 0x80;
    block.writeUIntBE(value, at + width - 6, 6);
  }
};

/** `LENGTH KEY=VALUE\n`, the length counting all of it. */
const record = (key: string, value: Buffer): Buffer => {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), value, Buffer.from('\n')]);
  let length = rest.length;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
};

const padding = (size: number): Buffer => Buffer.alloc((BLOCK - (size % BLOCK)) % BLOCK);
