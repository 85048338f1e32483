/** What the scenarios and benchmarks of the fault server share: an image, servers in workers, and faulter.c. */
import { execFileSync } from 'node:child_process';
import { mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { makeFaultStats } from '../../src/contract/fault-stats.js';
import { CHUNK_BYTES, PageMap } from '../../src/contract/page-map.js';
import { receiveHandshake } from '../../src/workers/vmm/handshake.js';
import { type FaultRegion, native } from '../../src/native/binding.js';

const PAGE_BYTES = 4096;
const HANDSHAKE_TIMEOUT_MS = 10_000;

const PAGES_PER_CHUNK = CHUNK_BYTES / PAGE_BYTES;

/** For UFFDIO_API. */
export const FEATURES = { eventFork: 2, eventRemap: 4, eventRemove: 8, eventUnmap: 64, threadId: 256 };
export const ALL_FEATURES = Object.values(FEATURES).reduce((all, one) => all | one);

/** The same content as in faulter.c: every fourth chunk is zero, and one page of every other. */
const pageOf = (page: number): Uint32Array => {
  const words = new Uint32Array(PAGE_BYTES / 4);
  if (Math.floor(page / PAGES_PER_CHUNK) % 4 === 3 || page % PAGES_PER_CHUNK === 1) return words;
  const first = Math.imul(page + 1, 0x9e3779b1);
  for (let word = 0; word < words.length; word++) words[word] = first ^ Math.imul(word, 0x85ebca6b);
  return words;
};

export const chunkIsZero = (chunk: number): boolean => chunk % 4 === 3;

/** A memfd with the content that faulter.c expects. */
export const makeImage = (chunks: number): number => {
  const fd = native.memfdCreate('source');
  native.fdResize(fd, chunks * CHUNK_BYTES);
  for (let page = 0; page < (chunks * CHUNK_BYTES) / PAGE_BYTES; page++) {
    if (!chunkIsZero(Math.floor(page / PAGES_PER_CHUNK)))
      native.fdWrite(fd, new Uint8Array(pageOf(page).buffer), page * PAGE_BYTES);
  }
  return fd;
};

/** The same as a layer, in a file of its own that is removed at once. */
export const makeLayer = (image: number): number => {
  const folder = mkdtempSync(join(tmpdir(), 'forkd-faults-'));
  const layer = openSync(join(folder, 'layer'), 'w+');
  rmSync(folder, { recursive: true });
  native.layerWriteImage(image, layer, { chunkBytes: CHUNK_BYTES, zstdLevel: 0 });
  return layer;
};

/** A memfd for an image, its page map and what is counted: all that servers of one image share. */
export class Served {
  readonly memfd: number;
  readonly memory: number | null;
  readonly map: PageMap;
  readonly stats = makeFaultStats(100_000);
  readonly order: Uint32Array;

  constructor(
    readonly chunks: number,
    { copies = false, sealed = true } = {},
  ) {
    this.memfd = native.memfdCreate('image');
    native.fdResize(this.memfd, chunks * CHUNK_BYTES);
    this.memory = copies ? null : native.memoryOpen(this.memfd);
    if (sealed && !copies) native.memfdSeal(this.memfd, ['grow', 'shrink', 'future_write', 'seal']);
    this.map = PageMap.create(chunks * CHUNK_BYTES);
    this.order = new Uint32Array(new SharedArrayBuffer(4 * (1 + chunks)));
  }

  /** A server with its threads, which end when it is stopped. */
  serve(from: { source: number } | { sourceFd: number }, threads = 1, patienceUs = 1000): Serving {
    const handle = native.faultOpen({ ...(this.memory === null ? {} : { memory: this.memory }), patienceUs, ...from });
    return new Serving(this, handle, threads);
  }

  get faultOrder(): number[] {
    return [...this.order.subarray(1, 1 + (this.order[0] ?? 0))];
  }
}

export class Serving {
  private readonly ended: Promise<unknown>[];

  constructor(
    readonly served: Served,
    readonly handle: number,
    threads: number,
  ) {
    this.ended = Array.from({ length: threads }, () => this.thread());
  }

  private thread(): Promise<unknown> {
    const { map, stats, order } = this.served;
    const workerData = { server: this.handle, states: map.states, stats, order };
    const worker = new Worker(fileURLToPath(new URL('./fault-worker.js', import.meta.url)), { workerData });
    return new Promise((resolve, reject) => {
      worker.once('exit', resolve);
      worker.once('error', reject);
    });
  }

  addThread(): void {
    this.ended.push(this.thread());
  }

  adopt(uffd: number, regions: FaultRegion[], pidfd?: number): void {
    native.faultAdopt(this.handle, uffd, regions, pidfd);
    native.fdClose(uffd);
  }

  async stop(): Promise<void> {
    native.faultStop(this.handle);
    await Promise.all(this.ended);
  }

  async close(kill = false): Promise<void> {
    await this.stop();
    native.faultClose(this.handle, this.served.map.states, kill);
  }
}

/** Compiled into `folder` on first use. */
export const compileFaulter = (folder: string): string => {
  const source = fileURLToPath(new URL('../../../test/native/faulter.c', import.meta.url));
  const output = join(folder, 'faulter');
  execFileSync('gcc', ['-D_GNU_SOURCE', '-std=gnu11', '-O2', '-o', output, source, '-lpthread']);
  return output;
};

/** A running faulter.c: one command, one answer. */
export class Faulter {
  readonly pid: number;
  readonly pidfd: number;
  private readonly socket: number;
  private readonly commands: number;
  private readonly answers: number;
  private unread = '';

  constructor(
    program: string,
    private readonly served: Served,
  ) {
    const [socket, theirSocket] = native.socketPair('stream');
    const [commands, theirInput] = native.socketPair('stream');
    const [answers, theirOutput] = native.socketPair('stream');
    const { pid, pidfd } = native.spawn({
      file: program,
      args: ['faulter'],
      env: [],
      dieWithParent: true,
      fds: [
        [theirInput, 0],
        [theirOutput, 1],
        [2, 2],
        [served.memfd, 3],
        [theirSocket, 4],
      ],
    });
    for (const fd of [theirSocket, theirInput, theirOutput]) native.fdClose(fd);
    this.pid = pid;
    this.pidfd = pidfd;
    this.socket = socket;
    this.commands = commands;
    this.answers = answers;
  }

  tell(command: string): void {
    native.sendFds(this.commands, new TextEncoder().encode(`${command}\n`), [], 1000);
  }

  /** The next line, without waiting for it in this thread. Null: the process has ended. */
  async answer(timeoutMs = 20_000): Promise<string | null> {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const end = this.unread.indexOf('\n');
      if (end >= 0) {
        const line = this.unread.slice(0, end);
        this.unread = this.unread.slice(end + 1);
        return line;
      }
      if (Date.now() > deadline) throw new Error(`no answer, only '${this.unread}'`);
      await new Promise((resolve) => setTimeout(resolve, 1));
      if (native.pollReadable([this.answers], 0).length === 0) continue;
      const { data } = native.recvFds(this.answers, 1 << 20, 0, 0);
      if (data.length === 0) return null;
      this.unread += new TextDecoder().decode(data);
    }
  }

  async ask(command: string): Promise<string | null> {
    this.tell(command);
    return await this.answer();
  }

  /** Throws unless the answer is ok. Returns the rest of it. */
  async must(command: string): Promise<string> {
    const answer = await this.ask(command);
    if (!answer?.startsWith('ok')) throw new Error(`${command}: ${answer}`);
    return answer.slice(3);
  }

  /** Maps the image and hands it to the server. */
  async join(serving: Serving, kind: 'private' | 'anonymous' = 'private', features = ALL_FEATURES): Promise<this> {
    await this.must(`map ${kind} ${features.toString(16)}`);
    const { uffd, regions } = await this.hand('regions');
    serving.adopt(uffd, regions);
    return this;
  }

  async hand(text: string): Promise<{ uffd: number; regions: FaultRegion[] }> {
    await this.must(`hand ${text}`);
    return receiveHandshake(this.socket, 'faulter', this.served.chunks * CHUNK_BYTES, HANDSHAKE_TIMEOUT_MS);
  }

  kill(): void {
    native.pidfdSignal(this.pidfd, 9);
  }
}
