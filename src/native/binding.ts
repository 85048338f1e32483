/**
 * The typed edge of the native addon: every function is named for what it does, documented by its system call,
 * and holds no policy. A failed system call throws an Error with `{code: 'ENOENT', syscall: 'renameat2', errno: -2}`, as
 * Node's own do (and `path` where there is one); a wrong argument throws a TypeError, code ERR_INVALID_ARG_VALUE.
 * Descriptors are plain numbers: they are process-wide, so a worker may be handed one. The caller owns and closes them.
 */
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import type { WpTimes } from '../contract/task.js';

export interface SpawnOptions {
  /** Absolute path of the program: PATH is not searched. */
  file: string;
  /** argv, args[0] included. */
  args: string[];
  /** `KEY=VALUE` strings. */
  env: string[];
  /**
   * It is in a pid namespace of its own, whose first process is this program: started before it, with an empty environment, in the same
   * user namespace and in no other of its own (unshare(2) CLONE_NEWPID, clone(2) CLONE_PARENT). Both are children of this process. They
   * hold the two ends of a pipe (pipe2(2)), the first process the reading end as descriptor 0, the child the other as `line`, and nobody else does.
   */
  init?: { file: string; args: string[]; line: number };
  cwd?: string;
  /** Descriptor map: `[source, target]`; every other descriptor is closed in the child (0, 1 and 2 too). Targets are distinct. */
  fds: [source: number, target: number][];
  /** Network namespace to enter before exec: an open descriptor of it (setns(2), CLONE_NEWNET). */
  netns?: number;
  /**
   * Namespaces of its own (unshare(2), an OR of CLONE_NEW*), after `netns` has been entered. With CLONE_NEWNS its mounts are private
   * to it (mount(2), MS_PRIVATE).
   */
  unshare?: number;
  /** In a user namespace of its own, of which it is root and which maps nobody but this process's user (user_namespaces(7)). */
  ownUserNamespace?: boolean;
  /** Most of a resource, soft and hard (setrlimit(2)), RLIMIT_* numbers; a lower one stays. */
  limits?: [resource: number, value: number][];
  /** Open `cgroup.procs` descriptors; the child writes itself into each before exec, so nothing runs outside its limits. */
  cgroups?: number[];
  /**
   * SIGKILL the child when this process dies (PR_SET_PDEATHSIG). Safe from workers: one native thread does every spawn.
   * The kernel drops it when the child changes its uid or runs a set-uid program.
   */
  dieWithParent?: boolean;
  /** SCHED_BATCH, sched(7): when it is woken, it does not push aside what runs. */
  batch?: boolean;
  /** /proc/self/oom_score_adj of the child, -1000 to 1000. */
  oomScoreAdj?: number;
}

export interface ExitStatus {
  /** Exit code, or null when a signal ended it. */
  code: number | null;
  /** Signal number, or null. */
  signal: number | null;
}

/**
 * What is wrong with a layer file, as thrown by the functions that read one: `reason` is the text. `layer` is its place in the
 * list that was given, 0 the base, where there was a list.
 */
export interface LayerDamaged extends Error {
  code: 'LAYER_DAMAGED';
  reason: string;
  layer?: number;
}

/** Of a layer file, from its header and index. */
export interface LayerInfo {
  /** Hex, 64 digits. */
  root: string;
  /** Null: a base. */
  parentRoot: string | null;
  imageBytes: number;
  chunkBytes: number;
  /** Chunks of which the layer owns pages. */
  entries: number;
  /** Bytes of all frames. */
  dataBytes: number;
  fileBytes: number;
  /** Pages with data, counted for every chunk they are in. */
  dataPages: number;
  /** Pages that the layer makes zero. */
  zeroPages: number;
  /** Different frames in the file, and the chunks that use one of another chunk. */
  uniqueFrames: number;
  sharedFrames: number;
}

export interface LayerWritten {
  root: string;
  entries: number;
  dataBytes: number;
  fileBytes: number;
}

export interface LayerOptions {
  /** 0: frames stay raw. 1 to 19: a frame is compressed when that saves an eighth or more. */
  zstdLevel: number;
}

export interface SourceInfo {
  imageBytes: number;
  chunkBytes: number;
  chunks: number;
  layers: number;
  /** Chunks without data in any layer. */
  zeroChunks: number;
  /** Bytes of the frames that the image needs, each counted once. */
  storedBytes: number;
}

/** A piece of an address space that shows a piece of the image: whole pages. */
export interface FaultRegion {
  base: number;
  bytes: number;
  /** In the image. */
  offset: number;
}

/** Someone whose memory could not be had. */
export interface FaultFailure {
  /** Null when the process could not be told for sure. */
  pid: number | null;
  /** Null: it was not about a chunk. */
  chunk: number | null;
  reason: string;
  /** The process was killed; whoever touches the chunk there gets SIGBUS; or (kernels before 6.6) it goes on waiting. */
  outcome: 'killed' | 'poisoned' | 'waiting';
}

export interface Native {
  /** memfd_create(2), MFD_CLOEXEC | MFD_ALLOW_SEALING (and MFD_HUGETLB | MFD_HUGE_2MB). Returns the descriptor. */
  memfdCreate(name: string, hugePages?: boolean): number;
  /** ftruncate(2), bytes. */
  fdResize(fd: number, bytes: number): void;
  /** fcntl(2) F_ADD_SEALS. `seals`: any of 'grow' 'shrink' 'write' 'future_write' 'seal'. */
  memfdSeal(fd: number, seals: string[]): void;
  /** pwrite(2) until all is written (hugetlb memfds: mmap(2), and never past the end). Returns the byte count. */
  fdWrite(fd: number, data: Uint8Array, offset: number): number;
  /** pread(2) until `into` is full or end of file. Returns the byte count. */
  fdRead(fd: number, into: Uint8Array, offset: number): number;
  /** fallocate(2) FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE. */
  memfdPunch(fd: number, offset: number, bytes: number): void;
  /** fstat(2): logical size and allocated bytes (st_blocks * 512). */
  fdSize(fd: number): { bytes: number; allocated: number };
  /** fsync(2). */
  fdSync(fd: number): void;
  /** fallocate(2) from the beginning, which also makes the file so large. Where the file system cannot, ftruncate(2) alone. */
  fdAllocate(fd: number, bytes: number): void;
  fdClose(fd: number): void;
  /** fcntl(2) F_DUPFD_CLOEXEC. */
  fdDup(fd: number): number;
  /** flock(2) without waiting: true when taken, false when another process holds it. */
  flockTry(fd: number, mode: 'shared' | 'exclusive'): boolean;
  /** renameat2(2): `noreplace` fails with EEXIST, `exchange` swaps both atomically. */
  rename2(from: string, to: string, mode: 'noreplace' | 'exchange'): void;
  /** statvfs(3): bytes free for this user, and in all. */
  diskSpace(path: string): { free: number; total: number };

  /**
   * Claims a chunk: compare-and-swap absent -> filling on `map[index]`. True for the one winner.
   * The JavaScript side does the same with Atomics.compareExchange on the same Int32Array.
   */
  chunkClaim(map: Int32Array, index: number): boolean;
  /** filling -> present or absent, with release order. False when it was not filling. Wakes nobody in Atomics.wait. */
  chunkSettle(map: Int32Array, index: number, present: boolean): boolean;

  /**
   * Reads and checks header and index of a layer file (docs/reference/snapshot-format.md), not its frames. pread(2).
   * Throws LayerDamaged, as do the others here that read layers.
   */
  layerOpen(fd: number): LayerInfo;
  /**
   * Writes the non-zero pages of `source` (a memfd or a file of whole pages; SEEK_DATA skips holes) as a layer: a base, or with
   * `parentRoot` a layer that owns every page. `target` is emptied first, and again when it fails; fsync(2) at the end.
   * `chunkBytes` is 16384. Blocks, as do the others here that write: call it from a worker.
   */
  layerWriteImage(
    source: number,
    target: number,
    options: LayerOptions & { chunkBytes: number; parentRoot?: string },
  ): LayerWritten;
  /**
   * As layerWriteImage, of an image that arrives in parts: `target` (duplicated) becomes a base, or with `parentRoot` and the handle `parent`, a source of that
   * image, a layer that owns the pages that differ. Returns a handle. Throws LayerDamaged when the parent is.
   */
  layerStreamOpen(
    target: number,
    imageBytes: number,
    options: LayerOptions & { parentRoot?: string; parent?: number },
  ): number;
  /** Whole chunks from `chunk` on, or to the image's end. They come in order; what is left out is as in the parent, or zero. */
  layerStreamAppend(handle: number, chunk: number, bytes: Uint8Array): void;
  /** Index, header, fsync(2). The handle is none any more. */
  layerStreamFinish(handle: number): LayerWritten;
  /** Gives up: the file is emptied. False when there is no such handle. */
  layerStreamClose(handle: number): boolean;
  /**
   * Writes what a process has changed: the anonymous pages of its private mappings of `memfd`, which it must not change meanwhile.
   * /proc/PID/maps, ioctl(2) PAGEMAP_SCAN (or /proc/PID/pagemap where the kernel lacks it, or with `scan: false`),
   * process_vm_readv(2). Throws ENXIO when there is no such mapping, EEXIST when two show the same page, ESRCH when the process ended.
   * `dirtyBytes`: the pages found, those that are zero included.
   */
  layerWriteProcess(
    pid: number,
    memfd: number,
    target: number,
    options: LayerOptions & { parentRoot: string; scan?: boolean },
  ): LayerWritten & { dirtyBytes: number };
  /**
   * Writes one base that equals the chain `layers` (base first). Verifies every frame it needs. A frame that one layer owns wholly
   * is copied as it is stored.
   */
  layerCompact(layers: number[], target: number, options: LayerOptions): LayerWritten;
  /**
   * Which pages of `file` are also in `disks`, zeros left out: runs of [page of the file, page of the disks, count], in the order of the file. Whole pages of
   * the disks are counted through. `blocks` gets BLAKE3-256 of each 64 KiB of the first disk. pread(2), in native threads. The promise does not keep the event loop alive.
   */
  samePages(file: number, disks: number[], threads: number, blocks?: Uint8Array): Promise<Uint32Array>;
  /**
   * Compresses `pieces`, triples of [descriptor, offset, bytes] (-1: bytes of `given`; -2: zeros), into frames
   * that have exactly these bytes, each with its size, and one that has bytes of `given` with a checksum. They are written to `target` in order, from its beginning: pread(2), pwrite(2),
   * sync_file_range(2); write(2) for what has no positions. Returns the bytes of each frame. In native threads; `progress` gets [bytes done] and is
   * asked [stop?]: then it throws ECANCELED. The promise does not keep the event loop alive.
   */
  framesWrite(
    target: number,
    pieces: BigInt64Array,
    frames: Uint32Array,
    given: Uint8Array,
    threads: number,
    progress: BigInt64Array,
  ): Promise<Uint32Array>;
  /**
   * Decompresses the frames of `pack`, pairs of [bytes in the file, bytes unpacked], and puts `segments` of the content where they belong: quadruples of
   * [begin in the content, bytes, descriptor, offset] (-1: into `aside`; -2: they must be zero). They may overlap; frames without any are not read. Zeros of files become holes:
   * the files are new, fallocate(2). `split`: frames from it on come first. Returns BLAKE3, in hex, of each part of the content that `hashed` names,
   * pairs of [begin, bytes] in frames from `split` on. As framesWrite otherwise. `source`: of one layer, whose file `layer` is; each of its chunks that is right when it is written gets a 1
   * in `known`; or -1. `folder`: a directory of the file system that is written to, by which the disk's cache is flushed meanwhile (fdatasync(2)); or -1. Throws an Error for a frame that is damaged.
   */
  framesRead(
    pack: number,
    frames: Uint32Array,
    segments: BigInt64Array,
    aside: Uint8Array,
    split: number,
    hashed: BigInt64Array,
    threads: number,
    progress: BigInt64Array,
    source: number,
    layer: number,
    known: Uint8Array,
    folder: number,
  ): Promise<string[]>;
  /** BLAKE3-256 of `data`, in hex. */
  blake3(data: Uint8Array): string;
  /** The same of a whole file, read from its beginning in a thread of its own, and how long it is. `fd` stays open until then. Throws ErrnoError. */
  fdBlake3(fd: number): Promise<{ blake3: string; bytes: number }>;

  /**
   * Merges a chain of layers (base first) into one table of chunks. Returns a handle that is valid in every worker. The descriptors are
   * duplicated. Throws LayerDamaged, also when the layers do not belong together.
   */
  sourceOpen(layers: number[]): number;
  /** Calls that are at work with it go on. False when there is no such handle. */
  sourceClose(handle: number): boolean;
  sourceInfo(handle: number): SourceInfo;
  /** One chunk, verified, its rest past the image's end zero. Returns the bytes read from layers. */
  sourceRead(handle: number, chunk: number, into: Uint8Array): number;
  /**
   * Reads every chunk in native threads, until so many problems are found: chunks whose data is damaged, or that their disk cannot read (EIO). Those with a 1 in `known`, which has a byte for each or none, are left out. `layer` is the
   * place in the chain, -1 when that is not known. The promise does not keep the event loop alive.
   */
  sourceVerify(
    handle: number,
    problemsMax: number,
    threads: number,
    known: Uint8Array,
  ): Promise<{ readBytes: number; problems: { chunk: number; layer: number; reason: string }[] }>;
  /** Pages, and chunks with such pages, that differ between two images of one size. Blocks: call it from a worker. Throws as sourceRead does. */
  sourceDiffer(a: number, b: number): { pages: number; chunks: number };
  /**
   * Reads, verifies and decompresses each chunk of [first, first+count) that it can claim, writes it into `memfd` and marks it present. Chunks
   * that others have filled or are filling are skipped, not waited for. Chunks without data are marked present without writing. On failure (LayerDamaged, EIO, ...) the chunk goes back to absent and it throws.
   * `stats`, if given, is added to atomically as it goes: [chunks filled, bytes read from layers, bytes written].
   */
  sourceFill(
    handle: number,
    states: Int32Array,
    first: number,
    count: number,
    memfd: number,
    stats?: BigInt64Array,
  ): { filled: number; skipped: number; bytes: number; readBytes: number };

  /**
   * What has arrived of a snapshot that is being fetched (hotfork/arrivals.h): `items` are the chunks of its image and, from `firstBlock` on, the
   * blocks of 64 KiB of its root disk. memfd_create(2). The descriptors are for VMMs, and belong to the handle, which is valid in every worker.
   */
  arrivalsOpen(items: number, firstBlock: number, disk?: number): { handle: number; statesFd: number; asksFd: number };
  /** Says that items are away (0), here (1) or will not come (2), and wakes who waits for them: futex(2). */
  arrivalsSettle(arrivals: number, items: Uint32Array, state: 0 | 1 | 2): void;
  /** All of it is here, for good. */
  arrivalsWhole(arrivals: number): void;
  /** The next items that somebody waits for, each once; none after arrivalsClose. The promise does not keep the event loop alive. One at a time. */
  arrivalsAskedAside(arrivals: number): Promise<Uint32Array>;
  /** Processes that ended themselves because a block of the disk will not come, since the last call; as StartedVmm.inside tells of them. */
  arrivalsVictims(arrivals: number): { pid: number; line: number }[];
  /** Servers that use it go on. False when there is no such handle. */
  arrivalsClose(arrivals: number): boolean;

  /** ioctl(2) UFFDIO_API: the features of userfaultfd(2) that this kernel has for us, e.g. 'event_fork'. Throws EPERM, ENOSYS. */
  uffdFeatures(): string[];
  /**
   * mmap(2) MAP_SHARED of a whole memfd that has its size, so that it can be filled with UFFDIO_COPY: page by page at once, and also
   * after it was sealed with 'future_write'. Throws EINVAL for one with huge pages or of partial pages. Returns a handle that is valid in every worker.
   */
  memoryOpen(memfd: number): number;
  /** Servers that use it go on. False when there is no such handle. */
  memoryClose(memory: number): boolean;
  /**
   * A fault server for one image (docs/internals/faults.md). The image comes from `source` (sourceOpen) or `sourceFd` (a plain file, not
   * verified). With `memory` chunks are put there, and whoever maps the memfd finds them; without, each address space gets copies.
   * `patienceUs`: how long a fault waits for a chunk that another thread is filling before this one fills it too.
   */
  faultOpen(
    options: { memory?: number; patienceUs: number } & (
      | {
          source: number;
          /** Its files are still being fetched: a chunk is read when its item has arrived, and asked for when somebody waits for it. */
          arrivals?: number;
        }
      | { sourceFd: number }
    ),
  ): number;
  /**
   * Takes a process's userfaultfd into service; the descriptors are duplicated. `pidfd`: the process, where the caller knows it. Throws ENOTSUP
   * when it was made without a feature that is needed: thread_id (unless there is a pidfd, and no event_fork), event_remove (without memory).
   */
  faultAdopt(server: number, uffd: number, regions: FaultRegion[], pidfd?: number): void;
  /**
   * Serves in this thread until faultStop: epoll_wait(2), read(2) of the userfaultfds, ioctl(2) UFFDIO_*. Several threads may serve at once, with the
   * same arrays: `states` is the page map, `stats` that of contract/fault-stats.ts, `order` gets the chunks in the order of their
   * first fault, after their count. Blocks: it has a worker for itself.
   */
  faultServe(server: number, states: Int32Array, stats: BigInt64Array, order: Uint32Array): void;
  /** The same in a native thread. The promise settles when it has returned, and does not keep the event loop alive. */
  faultServeAside(server: number, states: Int32Array, stats: BigInt64Array, order: Uint32Array): Promise<void>;
  /**
   * Fills those of `chunks` that are absent into the server's memory, until they are done or the server is stopped. Throws as sourceFill does.
   * Blocks: call it from a worker. Returns what it filled, zeros included, and what others had filled or were filling.
   */
  faultFill(
    server: number,
    states: Int32Array,
    stats: BigInt64Array,
    chunks: Uint32Array,
  ): { filled: number; skipped: number };
  /**
   * The same in a native thread, with `idle` one of SCHED_IDLE; it goes on after a chunk that could not be filled, and tells of the first 16.
   * The promise does not keep the event loop alive.
   */
  faultFillAside(
    server: number,
    states: Int32Array,
    stats: BigInt64Array,
    chunks: Uint32Array,
    idle: boolean,
  ): Promise<{ filled: number; skipped: number; failed: { chunk: number; error: Error }[] }>;
  /** Failures since the last call. */
  faultFailures(server: number): FaultFailure[];
  /** Lets go of the address spaces that have ended. Returns how many live. */
  faultSweep(server: number): number;
  /** Every faultServe and faultFill of this server returns, now and from now on. Faults wait from then on. */
  faultStop(server: number): void;
  /**
   * Closes the userfaultfds. What was not filled reads as zeros after that, so it throws EBUSY while an address space lives and a chunk is
   * not present, or a thread serves. `kill`: rather end the processes that wait, or are known by pidfd.
   */
  faultClose(server: number, states: Int32Array, kill?: boolean): void;
  /**
   * Write-protects memory of a process: from when this returns, `instantTake` can copy it as it is now, whatever is stored into it. Keep the
   * process stopped from before until then where more than its memory is to be of this instant. `uffd`: its userfaultfd, with `regions` registered
   * for write protection; duplicated. `privateOf`: only the pages of its private mappings of that memfd that it has changed, which it must have
   * registered; such a process has to be stopped. ioctl(2) UFFDIO_WRITEPROTECT. Returns a handle that is valid in every worker.
   */
  instantArm(uffd: number, pid: number, regions: FaultRegion[], privateOf?: number): number;
  /**
   * Copies into `target`, a file that is emptied first, each page at its offset in the image; zeros become holes. Who stores meanwhile waits for
   * the 64 KiB around it. Once for each handle. On failure nothing stays protected: ESRCH when the process has ended, EBUSY when it dropped or
   * moved memory. process_vm_readv(2), read(2) of the userfaultfd, in `copiers` threads and one more. Blocks: call it from a worker.
   */
  instantTake(copy: number, target: number, copiers: number): { pages: number; byFault: number; byCopiers: number };
  /** Lets go of what is still protected. False when there is no such handle. */
  instantClose(copy: number): boolean;
  /**
   * `forkd wp-bench`: maps `memfd` here, fills it with 0x42, write-protects it (armMs), copies it to `target` as instantTake does (copyMs), lets go and
   * fsyncs (finalizeMs). `writer`: a thread stores 0x43 all over it, from the arming on. Blocks: call it from a worker. Throws ENOTSUP when
   * the kernel cannot write-protect such memory, EPERM and ENOSYS as uffdFeatures.
   */
  wpBench(
    bytes: number,
    memfd: number,
    target: number,
    options: { isPrivate: boolean; writer: boolean; copiers: number },
  ): WpTimes;
  /** sched_setscheduler(2) of this thread: SCHED_IDLE or SCHED_OTHER. Going back may need privileges: EPERM. */
  threadIdlePriority(on: boolean): void;
  /** malloc_trim(3) of the whole process: free pages of the C heap go back to the kernel. False when there were none. */
  heapTrim(): boolean;
  /** socket(2) and sendto(2) of one datagram to a Unix socket; a path that begins with `@` is in the abstract namespace. Does not block: EAGAIN. */
  datagramSend(path: string, text: string): void;

  /** RDTSC and clock_gettime(2) CLOCK_MONOTONIC, read as closely together as can be. */
  tscSample(): { ticks: bigint; ns: bigint };

  /** socketpair(2) AF_UNIX, SOCK_CLOEXEC | SOCK_NONBLOCK. */
  socketPair(type: 'stream' | 'seqpacket'): [number, number];
  /** socket(2) AF_UNIX SOCK_SEQPACKET, SOCK_CLOEXEC | SOCK_NONBLOCK, and connect(2). Throws EAGAIN when nobody accepts and the queue is full. */
  unixConnect(path: string): number;
  /**
   * sendmsg(2) with SCM_RIGHTS; waits up to timeoutMs for room, then throws ETIMEDOUT (a stream may then have taken a part).
   * `data` must not be empty: descriptors travel with bytes. Blocks this thread, as does recvFds.
   */
  sendFds(socket: number, data: Uint8Array, fds: number[], timeoutMs: number): void;
  /**
   * recvmsg(2) with SCM_RIGHTS (MSG_CMSG_CLOEXEC). Empty data = end of file. Throws ETIMEDOUT when nothing came in time, and
   * EMSGSIZE when the message has more descriptors than maxFds or (seqpacket) more bytes than maxBytes: what arrived is closed.
   * With `custody` (contract/custody.ts) they are whoever's that is, before this returns; once it is closed it throws ECANCELED.
   */
  recvFds(
    socket: number,
    maxBytes: number,
    maxFds: number,
    timeoutMs: number,
    custody?: Int32Array,
  ): { data: Uint8Array; fds: number[] };

  /** poll(2) for POLLIN: those of `fds` that can be read, or were hung up. Empty after timeoutMs. Blocks: call it from a worker. */
  pollReadable(fds: number[], timeoutMs: number): number[];
  /** unshare(2) CLONE_NEWNET on a native thread of its own: a new network namespace, which lives as long as somebody holds something of it. */
  netnsCreate(): number;
  /** mount(2) MS_BIND onto a file that exists: the namespace lives until it is unmounted. */
  netnsBind(netns: number, path: string): void;
  /** umount2(2) MNT_DETACH | UMOUNT_NOFOLLOW. */
  netnsUnbind(path: string): void;
  /** ioctl(2) SIOCGSKNS: the namespace of a socket. */
  netnsOfSocket(socket: number): number;
  /** pidfd_getfd(2), then ioctl(2) TUNGETDEVNETNS: the namespace of a tap that a process has open as `fd`. */
  netnsOf(pidfd: number, fd: number): number;
  /**
   * open(2) of /dev/net/tun and ioctl(2) TUNSETIFF, IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, inside a namespace, which lives as long as the tap is
   * open. The tap itself goes with its descriptor, or when it `stays` (TUNSETPERSIST) with its namespace: the kernel then takes away many
   * at once, in its own time, where closing one takes tens of milliseconds.
   */
  tapCreate(netns: number, name: string, stays: boolean): number;
  /** signalfd(2) of no signal, in place of a tap: nothing ever comes from it, and it takes nothing. */
  tapNowhere(): number;
  /**
   * socket(2) made inside a network namespace, which it then belongs to for life: a native thread of its own enters it with setns(2).
   * Returns a non-blocking TCP socket, not yet connected.
   */
  tcpSocketIn(netns: number, family: 4 | 6): number;
  /** The same, of UDP. */
  udpSocketIn(netns: number, family: 4 | 6): number;
  /** setsockopt(2) SO_REUSEADDR, bind(2) to a numeric address and, when `listens`, listen(2). */
  inetBind(socket: number, address: string, port: number, listens: boolean): void;
  /** socket(2) AF_NETLINK, SOCK_RAW, in a namespace, with NETLINK_CAP_ACK and NETLINK_EXT_ACK. */
  netlinkSocket(netns: number, protocol: number): number;
  /**
   * send(2) of one or more messages, then recv(2) until each that asks for it (NLM_F_ACK, NLM_F_DUMP) has its answer. Returns the messages
   * that came, without acknowledgements. Throws the first refusal, with the kernel's own words as `path`. Blocks this thread; one call at a time.
   */
  netlinkCall(socket: number, request: Uint8Array, timeoutMs: number): Uint8Array;
  /** connect(2) to a numeric address, waiting up to timeoutMs. Blocks that long at most. */
  tcpConnect(socket: number, address: string, port: number, timeoutMs: number): void;

  /**
   * clone(2) with CLONE_PIDFD | CLONE_VM | CLONE_VFORK, then execve(2). The child leads its own process group, with default
   * signal handlers and nothing blocked. Returns when the program runs; a step that failed before throws here, named by
   * `syscall`: 'execve', 'chdir', 'setns', 'unshare', 'unshare of a pid namespace', 'execve of the init', 'mount', 'setrlimit', 'fcntl' or 'dup3' (a bad `fds` source), 'write cgroup.procs', 'write oom_score_adj'.
   */
  spawn(options: SpawnOptions): {
    pid: number;
    pidfd: number;
    /** Its pid in its own pid namespace. */
    inside: number;
    /** With an `init`: a pidfd of that, and the inode of their pipe. */
    init?: number;
    line?: number;
  };
  /** pidfd_open(2). */
  pidfdOpen(pid: number): number;
  /** The pid of an open pidfd as this process numbers it, whatever namespace it came from (/proc/self/fdinfo); 0 when it is gone. */
  pidfdPid(pidfd: number): number;
  /** pidfd_getfd(2): a duplicate of a descriptor that a process has open. */
  pidfdGetfd(pidfd: number, fd: number): number;
  /** pidfd_send_signal(2). False when the process is gone (ESRCH). */
  pidfdSignal(pidfd: number, signal: number): boolean;
  /**
   * Calls back once when the process has ended, by polling readiness in this thread's event loop (no timer), then reaps it with
   * waitid(2) P_PIDFD. A process that is not our child, or that somebody else has reaped, reports `{code: null, signal: null}`.
   * Returns a function that stops waiting. Does not keep the event loop alive. Does not close the pidfd, which may be closed while the watch goes on, but makes it
   * non-blocking. One watch a process: of two, one gets the status.
   */
  pidfdWatch(pidfd: number, done: (status: ExitStatus) => void): () => void;
}

/** The nearest folder with a package.json: this file runs from src/ (types) and from dist/src/ (compiled). */
function packageRoot(from: string): string {
  if (existsSync(join(from, 'package.json'))) return from;
  const parent = dirname(from);
  if (parent === from) throw new Error('forkd: no package.json above src/native: cannot find the native addon');
  return packageRoot(parent);
}

/** FORKD_NATIVE_PATH names another build, such as the one that tools/native-asan.sh makes. */
const addonPath =
  process.env.FORKD_NATIVE_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_native.node');

/** The hot-fork shim, to be preloaded into QEMU. FORKD_SHIM_PATH names another build. */
export const shimPath =
  process.env.FORKD_SHIM_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_hotfork.so');

/** The agent for guests without Python, a static program. FORKD_AGENT_PATH names another build. */
export const agentPath =
  process.env.FORKD_AGENT_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_agent');

/** What the agent in Python loads to take a copy's identity (guest/take). FORKD_TAKE_PATH names another build. */
export const takePath =
  process.env.FORKD_TAKE_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_take.so');

/** Holds descriptors of sandboxes beyond the daemon's end (main/sandbox/keeper.ts). FORKD_KEEPER_PATH names another build. */
export const keeperPath =
  process.env.FORKD_KEEPER_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_keeper');

/** The first process of a jail's pid namespace. FORKD_WARDEN_PATH names another build. */
export const wardenPath =
  process.env.FORKD_WARDEN_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_warden');

/** Preloaded into a VMM that must live no longer than somebody holds the other end of a socket. FORKD_TETHER_PATH names another build. */
export const tetherPath =
  process.env.FORKD_TETHER_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_tether.so');

/** Preloaded into a QEMU whose guest reaches the network through it, but not this host's loopback. FORKD_FENCE_PATH names another build. */
export const fencePath =
  process.env.FORKD_FENCE_PATH ?? join(packageRoot(import.meta.dirname), 'build/Release/forkd_fence.so');

export const native: Native = createRequire(import.meta.url)(addonPath);
