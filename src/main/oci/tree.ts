/**
 * A root file system that is put together from layers. A model in memory knows what everything is; contents go to the blocks of a disk. Symbolic links are
 * followed in the model alone, and no name in an archive is ever one of the host's.
 */
import { limits } from '../../contract/limits.js';
import type { Disk } from './ext4/disk.js';
import type { Extent } from './ext4/layout.js';
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
  /** Where what of it is no hole lies on the disk. */
  extents: Extent[];
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

export class Tree {
  readonly root: Node = directory(0);
  /** What its files have, holes included. */
  contentBytes = 0;
  entries = 0;
  #layer = 0;

  constructor(readonly disk: Disk) {
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
      // One by one: a call has no room for more than some 100,000 arguments.
      for (const child of node.children?.values() ?? []) stack.push(child);
    }
  }

  /** A directory of the root, unless there is one. */
  ensureDirectory(name: string, mode: number): void {
    const children = this.root.children as Map<string, Node>;
    if (children.get(name)?.kind === 'directory') return;
    if (children.has(name)) this.#remove(this.root, name);
    children.set(name, { ...directory(this.#layer), mode, paths: [`/${name}`] });
  }

  /** The content of a file. */
  read({ extents, size }: Node): Promise<Buffer> {
    return this.disk.read(extents, size);
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
      extents: [],
      paths: [path],
      ...(entry.kind === 'directory' ? { children: new Map() } : {}),
    };
    await this.#make(node, path, body);
    children.set(name, node);
  }

  async #make(node: Node, path: string, body: AsyncIterable<Buffer>): Promise<void> {
    if (node.kind === 'symlink' && (node.target.length === 0 || node.target.length > PATH_MAX - 1))
      throw new Error(`the link '${path}' is empty or too long`);
    if (node.target.includes('\0')) throw new Error(`the link '${path}' has a zero in it`);
    if (node.kind !== 'file') return;
    this.contentBytes += node.size;
    if (this.contentBytes > limits.imageContentMaxBytes) throw new Error('it unpacks to too much');
    node.extents = (await this.disk.store(body)).extents;
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
    node.paths = node.paths.filter((one) => one !== path);
    if (node.kind === 'file' && node.paths.length === 0) {
      this.contentBytes -= node.size;
      this.disk.release(node.extents);
    }
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
  extents: [],
  paths: [],
  children: new Map(),
});

const attributes = ({ mode, uid, gid, mtime, xattrs }: TarEntry) => ({ mode, uid, gid, mtime, xattrs });

/** The parts of a name. Throws an Error for one that leads up. */
const split = (name: string): string[] => {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.');
  if (parts.includes('..')) throw new Error(`the name '${name}' leads up`);
  if (parts.some((part) => part.length > NAME_MAX)) throw new Error('a name is too long');
  if (name.includes('\0')) throw new Error('a name has a zero in it');
  return parts;
};
