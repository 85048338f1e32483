/** Small snapshots with real layers, made without a VM: what is tested is the store, not what is in the guest. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, openSync, statSync, writeFileSync } from 'node:fs';
import { type FileDigest, MEMORY_FILE, type SnapshotManifest, STATE_FILE } from '../../src/contract/snapshot.js';
import { CHUNK_BYTES } from '../../src/contract/page-map.js';
import { MiB } from '../../src/contract/units.js';
import { MemorySource } from '../../src/main/memory/source.js';
import { makeDiffManifest } from '../../src/main/store/diff.js';
import type { Staging } from '../../src/main/store/staging.js';
import type { Store } from '../../src/main/store/store.js';
import { native } from '../../src/native/binding.js';
import { manifest } from './manifest.js';

export const IMAGE_MIB = 128;
export const PAGE = 4096;
export const CHUNKS = (IMAGE_MIB * MiB) / CHUNK_BYTES;
const STATE = 'device state';

/** What is written: for each page of the image, the byte that fills it. */
export type Pages = Record<number, number>;

/** Every chunk a different one: `count` pages, one at the start of each of the first chunks. */
export const spread = (count: number, seed = 1): Pages =>
  Object.fromEntries(Array.from({ length: count }, (_, i) => [i * 16, ((i + seed) % 255) + 1]));

const publish = (staging: Staging, made: (root: string) => SnapshotManifest, root: string, replace: boolean): void => {
  writeFileSync(staging.file(STATE_FILE), STATE, { flush: true });
  staging.publish(made(root), replace);
};

const writeLayer = (staging: Staging, write: (fd: number) => { root: string }): string => {
  const fd = openSync(staging.file(MEMORY_FILE), 'wx+');
  try {
    return write(fd).root;
  } finally {
    closeSync(fd);
  }
};

/** A file that a manifest can name as its kernel, initramfs or root disk. */
export const putDisk = (path: string, content: string | Buffer): FileDigest => {
  writeFileSync(path, content);
  return { path, blake3: native.blake3(Buffer.from(content)), bytes: content.length, mtime_ms: statSync(path).mtimeMs };
};

/** A tag whose image has these pages. */
export const putBase = (
  store: Store,
  tag: string,
  pages: Pages,
  change: Partial<SnapshotManifest> = {},
  replace = false,
): string => {
  const filled = Object.entries(pages).map(([page, value]) => [page, new Uint8Array(PAGE).fill(value)]);
  return putImage(store, tag, Object.fromEntries(filled), change, replace);
};

/** The same, with any content in its pages. */
export const putImage = (
  store: Store,
  tag: string,
  pages: Record<number, Uint8Array>,
  change: Partial<SnapshotManifest> = {},
  replace = false,
): string => {
  const lock = store.lock(tag);
  const image = native.memfdCreate(tag);
  const staging = store.stage(tag);
  try {
    native.fdResize(image, IMAGE_MIB * MiB);
    for (const [page, content] of Object.entries(pages)) native.fdWrite(image, content, Number(page) * PAGE);
    const root = writeLayer(staging, (fd) =>
      native.layerWriteImage(image, fd, { chunkBytes: CHUNK_BYTES, zstdLevel: 0 }),
    );
    const dir = store.dir(tag);
    const made = (memory_root: string) => manifest({ ...facts(dir), tag, memory_root, ...change });
    publish(staging, made, root, replace);
    return dir;
  } finally {
    staging.discard();
    native.fdClose(image);
    lock.release();
  }
};

const facts = (dir: string) => ({
  vmstate: `${dir}/${STATE_FILE}`,
  memory: `${dir}/${MEMORY_FILE}`,
  memory_mib: IMAGE_MIB,
  memory_bytes: IMAGE_MIB * MiB,
  vmstate_bytes: STATE.length,
});

/** A tag that stores what `subject` has changed, as a child of `parent`. */
export const putDiff = (store: Store, tag: string, parent: string, subject: Subject, replace = false): string => {
  const lock = store.lock(tag);
  const staging = store.stage(tag);
  try {
    const from = store.manifest(parent);
    const root = writeLayer(staging, (fd) =>
      native.layerWriteProcess(subject.pid, subject.memfd, fd, { zstdLevel: 0, parentRoot: from.memory_root }),
    );
    const dir = store.dir(tag);
    publish(staging, (r) => makeDiffManifest(from, { tag, dir, root: r, stateBytes: STATE.length }), root, replace);
    return dir;
  } finally {
    staging.discard();
    lock.release();
  }
};

const SUBJECT = `
import mmap, sys
image = mmap.mmap(3, ${IMAGE_MIB} << 20, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
print('mapped', flush=True)
for line in sys.stdin:
    page, value = map(int, line.split())
    image[page * ${PAGE}:(page + 1) * ${PAGE}] = bytes([value]) * ${PAGE}
    print(page, flush=True)
`;

/** A process with a private mapping of an image, which it changes on request: what a child is, as far as its memory goes. */
export class Subject {
  private constructor(
    readonly child: ChildProcess,
    readonly memfd: number,
  ) {}

  static async start(): Promise<Subject> {
    const memfd = native.memfdCreate('subject');
    native.fdResize(memfd, IMAGE_MIB * MiB);
    const child = spawn('python3', ['-c', SUBJECT], { stdio: ['pipe', 'pipe', 'inherit', memfd] });
    await once(child.stdout as NonNullable<typeof child.stdout>, 'data');
    return new Subject(child, memfd);
  }

  get pid(): number {
    return this.child.pid as number;
  }

  async write(pages: Pages): Promise<void> {
    for (const [page, value] of Object.entries(pages)) {
      this.child.stdin?.write(`${page} ${value}\n`);
      await once(this.child.stdout as NonNullable<typeof this.child.stdout>, 'data');
    }
  }

  async end(): Promise<void> {
    const ended = once(this.child, 'close');
    this.child.kill('SIGKILL');
    await ended;
    native.fdClose(this.memfd);
  }
}

const ALL = Array.from({ length: CHUNKS }, (_, index) => index);

/** The image of a tag as it would be restored: its pages that are not zero. Reads and checks everything, or these chunks. */
export const readPages = (store: Store, tag: string, chunks = ALL): Pages => {
  const chain = store.hold(tag);
  try {
    const source = MemorySource.open(chain.layers);
    try {
      return pagesOf(source.handle, chunks);
    } finally {
      source.close();
    }
  } finally {
    chain.close();
  }
};

/** The pages of an open source that are not zero. */
export const pagesOf = (handle: number, chunks = ALL): Pages => {
  const pages: Pages = {};
  const chunk = new Uint8Array(CHUNK_BYTES);
  for (const index of chunks) {
    native.sourceRead(handle, index, chunk);
    for (let page = 0; page < CHUNK_BYTES / PAGE; page++) {
      const value = chunk[page * PAGE] as number;
      if (value !== 0) pages[index * (CHUNK_BYTES / PAGE) + page] = value;
    }
  }
  return pages;
};

/** The code of what a call throws. */
export const code = (call: () => unknown): string => {
  try {
    call();
    return 'no error';
  } catch (error) {
    return String((error as { code?: string }).code ?? error);
  }
};
