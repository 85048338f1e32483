/**
 * A root file system that is put together from layers. A model in memory knows what everything is; contents lie in a directory of the host, under
 * names that the model gives. Symbolic links are followed in the model alone: nothing in an archive can lead out of the directory.
 */
import {
  closeSync,
  chmodSync,
  fchmodSync,
  ftruncateSync,
  lchownSync,
  linkSync,
  lutimesSync,
  mkdirSync,
  openSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeSync,
} from 'node:fs';
import { errnoOf } from '../../contract/errors.js';
import { limits } from '../../contract/limits.js';
import type { TarEntry } from './tar.js';

export interface Node {
  kind: 'file' | 'directory' | 'symlink' | 'character' | 'block' | 'fifo';
  mode: number;
  uid: number;
  gid: number;
  mtime: number;
  xattrs: Map<string, Buffer>;
  /** The layer that made it, counted from 0. */
  layer: number;
  target: string;
  major: number;
  minor: number;
  size: number;
  /** Of these, what is not a hole. */
  dataBytes: number;
  /** Where it is: several for hard links. */
  paths: string[];
  children?: Map<string, Node>;
}

const WHITEOUT = '.wh.';
const OPAQUE = '.wh..wh..opq';
/** As the kernel has it. */
const SYMLINKS_MAX = 40;
const NAME_MAX = 255;
const PATH_MAX = 4096;

const BLOCK = 4096;
/** Of a symbolic link that needs no block. */
const INLINE_TARGET_MAX = 60;

const bytes = (path: string): Buffer => Buffer.from(path, 'latin1');

export class Tree {
  readonly root: Node = directory(0);
  /** What its files have, holes included. */
  contentBytes = 0;
  entries = 0;
  #layer = 0;

  /** `dir` exists and is empty. */
  constructor(readonly dir: string) {
    this.root.paths = [''];
  }

  beginLayer(layer: number): void {
    this.#layer = layer;
  }

  /** Throws an Error with the reason. */
  async add(entry: TarEntry, body: AsyncIterable<Buffer>): Promise<void> {
    const parts = split(entry.name);
    const name = parts.pop();
    if (name === undefined) {
      if (entry.kind === 'directory') Object.assign(this.root, attributes(entry));
      return;
    }
    if (++this.entries > limits.imageEntriesMax) throw new Error(`it has more than ${limits.imageEntriesMax} entries`);
    const parent = this.#directory(parts, entry.name);
    if (name === OPAQUE) {
      for (const child of [...(parent.children as Map<string, Node>).keys()]) this.#removeLower(parent, child);
    } else if (name.startsWith(WHITEOUT)) this.#removeLower(parent, name.slice(WHITEOUT.length));
    else await this.#put(parent, name, entry, body);
  }

  /** What a path is, links followed; undefined when there is nothing. */
  find(path: string): Node | undefined {
    try {
      return this.#resolve(split(path));
    } catch {
      return undefined;
    }
  }

  /** Adds a file of our own, in place of anything that is there. */
  async write(path: string, content: string, mode = 0o644): Promise<void> {
    const whole = Buffer.from(content);
    const entry: TarEntry = { ...PLAIN, name: path, kind: 'file', mode, size: whole.length };
    await this.add(
      entry,
      (async function* () {
        yield whole;
      })(),
    );
  }

  *nodes(): Generator<Node> {
    const seen = new Set<Node>();
    const stack = [this.root];
    for (let node = stack.pop(); node; node = stack.pop()) {
      if (seen.has(node)) continue;
      seen.add(node);
      yield node;
      if (node.children) stack.push(...node.children.values());
    }
  }

  /** What a file system of it needs. */
  measure(): { blocks: number; inodes: number } {
    let [blocks, inodes] = [0, 0];
    for (const node of this.nodes()) {
      inodes++;
      if (node.children) {
        // An entry has 8 bytes and its name, in steps of 4; blocks of entries are never quite full.
        const size = [...node.children.keys()].reduce((sum, name) => sum + 12 + name.length, 24);
        blocks += Math.ceil((size * 1.1) / BLOCK);
      } else if (node.kind === 'symlink' && node.target.length >= INLINE_TARGET_MAX) blocks++;
      // A part that is not a hole touches a block before and behind it.
      else blocks += Math.ceil(node.dataBytes / BLOCK) + (node.dataBytes < node.size ? 2 : 0);
      if (node.xattrs.size > 0) blocks++;
    }
    return { blocks, inodes };
  }

  host(path: string): Buffer {
    return bytes(`${this.dir}${path}`);
  }

  async #put(parent: Node, name: string, entry: TarEntry, body: AsyncIterable<Buffer>): Promise<void> {
    const children = parent.children as Map<string, Node>;
    const old = children.get(name);
    if (entry.kind === 'directory' && old?.kind === 'directory') {
      Object.assign(old, attributes(entry), { layer: this.#layer });
      return;
    }
    const linked = entry.kind === 'link' ? this.#resolve(split(entry.target), false) : undefined;
    if (entry.kind === 'link' && (linked === undefined || linked.kind === 'directory'))
      throw new Error(`'${entry.name}' is a hard link to '${entry.target}', which is not there or is a directory`);
    // A file linked to itself stays what it is.
    if (linked !== undefined && linked === old) return;
    if (old) this.#remove(parent, name);
    const path = `${parent.paths[0]}/${name}`;
    if (path.length > PATH_MAX) throw new Error('a path is too long');
    if (linked) {
      if (hasContent(linked)) linkSync(this.host(linked.paths[0] as string), this.host(path));
      linked.paths.push(path);
      children.set(name, linked);
      return;
    }
    const node: Node = {
      ...attributes(entry),
      kind: entry.kind as Node['kind'],
      layer: this.#layer,
      target: entry.target,
      major: entry.major,
      minor: entry.minor,
      size: entry.size,
      dataBytes: 0,
      paths: [path],
      ...(entry.kind === 'directory' ? { children: new Map() } : {}),
    };
    await this.#make(node, path, body);
    children.set(name, node);
  }

  async #make(node: Node, path: string, body: AsyncIterable<Buffer>): Promise<void> {
    const host = this.host(path);
    if (node.kind === 'directory') mkdirSync(host, 0o700);
    else if (node.kind === 'symlink') {
      if (node.target.length === 0 || node.target.length > PATH_MAX - 1)
        throw new Error(`the link '${path}' is empty or too long`);
      symlinkSync(bytes(node.target), host);
    } else if (node.kind === 'file') {
      this.contentBytes += node.size;
      if (this.contentBytes > limits.imageContentMaxBytes) throw new Error('it unpacks to too much');
      await writeFile(host, node, body);
    }
  }

  /** Removes a name, if what it names is of a lower layer, or what of it is. */
  #removeLower(parent: Node, name: string): void {
    const children = parent.children as Map<string, Node>;
    const node = children.get(name);
    if (!node) return;
    if (node.children) for (const child of [...node.children.keys()]) this.#removeLower(node, child);
    if (node.layer < this.#layer && (node.children?.size ?? 0) === 0) this.#remove(parent, name);
  }

  #remove(parent: Node, name: string): void {
    const children = parent.children as Map<string, Node>;
    const node = children.get(name) as Node;
    const path = `${parent.paths[0]}/${name}`;
    for (const child of [...(node.children?.keys() ?? [])]) this.#remove(node, child);
    if (node.children || hasContent(node)) rmSync(this.host(path), { recursive: true, force: true });
    node.paths = node.paths.filter((one) => one !== path);
    if (node.kind === 'file' && node.paths.length === 0) this.contentBytes -= node.size;
    children.delete(name);
  }

  /** The directory of these names, made where it is missing. */
  #directory(parts: string[], of: string): Node {
    let at = this.root;
    for (const [i, part] of parts.entries()) {
      const next = this.#resolve(parts.slice(0, i + 1));
      if (next?.kind === 'directory') {
        at = next;
        continue;
      }
      // A dangling link or a file in the way: nothing can be put behind it.
      if (next !== undefined || (at.children as Map<string, Node>).has(part))
        throw new Error(`'${of}' lies behind '${parts.slice(0, i + 1).join('/')}', which is not a directory`);
      const made = { ...directory(this.#layer), paths: [`${at.paths[0]}/${part}`] };
      mkdirSync(this.host(made.paths[0] as string), 0o700);
      (at.children as Map<string, Node>).set(part, made);
      at = made;
    }
    return at;
  }

  /** Walks from the root; `..` of the root is the root. Throws an Error for a loop. */
  #resolve(parts: string[], followLast = true): Node | undefined {
    const rest = [...parts];
    const trail: Node[] = [this.root];
    let links = 0;
    for (let part = rest.shift(); part !== undefined; part = rest.shift()) {
      if (part === '..') {
        if (trail.length > 1) trail.pop();
        continue;
      }
      const next = (trail.at(-1) as Node).children?.get(part);
      if (!next) return undefined;
      if (next.kind === 'symlink' && (rest.length > 0 || followLast)) {
        if (++links > SYMLINKS_MAX) throw new Error('symbolic links go round in circles');
        if (next.target.startsWith('/')) trail.length = 1;
        rest.unshift(...next.target.split('/').filter((one) => one !== '' && one !== '.'));
        continue;
      }
      trail.push(next);
    }
    return trail.at(-1);
  }

  /**
   * Gives everything the modes, owners and times that this user may give, and returns the rest: what has to be set in the file system that is
   * made of it.
   */
  finish(): Node[] {
    const isRoot = process.getuid?.() === 0;
    const rest: Node[] = [];
    // Directories after what is in them: their times change with it.
    const all = [...this.nodes()].reverse();
    for (const node of all) if (node.kind !== 'directory') this.#finishNode(node, isRoot, rest);
    for (const node of all) if (node.kind === 'directory') this.#finishNode(node, isRoot, rest);
    return rest;
  }

  #finishNode(node: Node, isRoot: boolean, rest: Node[]): void {
    if (node.kind !== 'directory' && !hasContent(node)) {
      rest.push(node);
      return;
    }
    const host = this.host(node.paths[0] as string);
    let isDone = node.xattrs.size === 0;
    if (!isRoot) isDone = false;
    else if (node.uid !== 0 || node.gid !== 0) isDone = owned(host, node) && isDone;
    // Root reads what nobody may, and nobody else gets this far into the directory. Others leave the mode to the file system too.
    if (isRoot && node.kind !== 'symlink' && (node.kind === 'directory' || node.mode !== hostMode(node)))
      chmodSync(host, node.mode);
    if (node.kind === 'symlink') lutimesSync(host, node.mtime, node.mtime);
    else utimesSync(host, node.mtime, node.mtime);
    if (!isDone) rest.push(node);
  }
}

const PLAIN: TarEntry = {
  name: '',
  kind: 'file',
  target: '',
  mode: 0o644,
  uid: 0,
  gid: 0,
  size: 0,
  mtime: 0,
  major: 0,
  minor: 0,
  xattrs: new Map(),
};

const directory = (layer: number): Node => ({
  ...attributes({ ...PLAIN, mode: 0o755 }),
  kind: 'directory',
  layer,
  target: '',
  major: 0,
  minor: 0,
  size: 0,
  dataBytes: 0,
  paths: [],
  children: new Map(),
});

const attributes = ({ mode, uid, gid, mtime, xattrs }: TarEntry) => ({ mode, uid, gid, mtime, xattrs });

/** What is on the host besides directories. */
const hasContent = (node: Node): boolean => node.kind === 'file' || node.kind === 'symlink';

/** The parts of a name. Throws an Error for one that leads up. */
const split = (name: string): string[] => {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..')) throw new Error(`the name '${name}' leads up`);
  if (parts.some((part) => part.length > NAME_MAX)) throw new Error('a name is too long');
  return parts;
};

const owned = (host: Buffer, { uid, gid }: Node): boolean => {
  try {
    lchownSync(host, uid, gid);
    return true;
  } catch (error) {
    // In a container, root has only some of the numbers.
    if (errnoOf(error) === 'EINVAL' || errnoOf(error) === 'EPERM') return false;
    throw error;
  }
};

/** What a file is made with: its maker has to read it again. */
const hostMode = (node: Node): number => (node.mode & 0o777) | 0o600;

/** Runs of zeros of this size become holes. */
const HOLE_BYTES = 4096;
const ZEROS = Buffer.alloc(1024 * 1024);

const writeFile = async (host: Buffer, node: Node, body: AsyncIterable<Buffer>): Promise<void> => {
  const mode = hostMode(node);
  const fd = openSync(host, 'wx', mode);
  try {
    let at = 0;
    for await (const part of body) {
      if (part.length < HOLE_BYTES || part.length > ZEROS.length || !part.equals(ZEROS.subarray(0, part.length))) {
        for (let done = 0; done < part.length; ) done += writeSync(fd, part, done, part.length - done, at + done);
        node.dataBytes += part.length;
      }
      at += part.length;
    }
    if (at > 0) ftruncateSync(fd, at);
    if ((mode & ~0o755) !== 0 || (mode & 0o022) !== 0) fchmodSync(fd, mode);
  } finally {
    closeSync(fd);
  }
};
