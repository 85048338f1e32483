/** Every maximum in one place, with its unit and its reason. */
export const limits = {
  /** Children of one request. The reference's REST limit is 1,000; a local fan-out of 4,000 is what its addressing should reach. */
  childrenMax: 4000,
  /** Children of one POST /v1/sandboxes: the reference's limit. */
  spawnMax: 1000,
  /** Body of a request to the daemon, bytes: the reference's limit. */
  bodyMaxBytes: 2 * 1024 * 1024,
  /** Seconds for one exec through the daemon: a day. A timer of Node overflows at 24.8 days. */
  execMaxSecs: 86_400,
  /** MiB of a sandbox's limit: 1 TiB, more than any host here has, and its bytes are still exact in a double. */
  memoryLimitMaxMib: 1024 * 1024,
  /** Processors, MiB a second, and processes and threads of a sandbox's limits: beyond any host. */
  cpusMax: 1024,
  ioMaxMibPerS: 1024 * 1024,
  pidsMax: 4_194_304,
  /** QEMU's thread pool grows to 64, a guest has up to 16 processors; QEMU ends itself where it cannot have a thread. */
  pidsMin: 96,
  /** Processes and threads of a VM when nothing else was asked for: QEMU's thread pool has at most 64, a guest 16 processors. */
  vmTasks: 256,
  /** Seconds that a sandbox may be given to live, or to be idle: a year. */
  lifetimeMaxSecs: 365 * 86_400,
  /** Labels of one thing, and characters of a label's value: they are for looking things up, not for storing them. */
  labelsMax: 32,
  labelMaxChars: 256,
  /** Dead sandboxes that stay listed; of more, the oldest go. */
  deadMax: 1000,
  /** Seconds to boot for POST /v1/snapshots that a caller may ask for: the reference's limit. */
  createBootMaxSecs: 60,
  /** Listeners of GET /v1/events, and bytes that one may leave unread: some thousand events. */
  listenersMax: 100,
  listenerBacklogBytes: 1024 * 1024,
  /** A URL: Node takes 16 KiB of headers in all. */
  urlMaxChars: 16 * 1024,
  /** Milliseconds for a request's headers, and for all of it, to arrive: a slow client must not hold its connection for ever. */
  headersMs: 10_000,
  requestMs: 30_000,
  /** Milliseconds in which a client must take something of its answer: one that does not read must not hold it in memory. */
  answerStallMs: 60_000,
  /** Connections to the port, in all and from one address: a descriptor each, and a proxy in front has one for each exec that runs. */
  connectionsMax: 4096,
  connectionsPerAddressMax: 1024,
  /** Requests a second from one address, unless --rate-limit says otherwise: more than two processors can answer. */
  requestsPerSecond: 5000,
  /** Rules of what one child may reach: each packet walks through them in turn. */
  networkRulesMax: 256,
  /** Bytes; a shorter token can be guessed. */
  tokenMinBytes: 16,
  /** Guest RAM. Below 128 MiB the Debian kernel and numpy do not fit; above 64 GiB is beyond what has been tried. */
  memoryMinMib: 128,
  memoryMaxMib: 65_536,
  /** QEMU's microvm machine has 32 virtio-mmio slots; TCG gains nothing above the host's cores. */
  vcpusMax: 16,
  /** The reference's CLI limit. vdb..vdy. */
  volumesMax: 24,
  /** Seconds. `--boot-wait-secs` is only an upper bound, but a bound all the same. */
  bootWaitMaxSecs: 3600,
  /** Seconds the agent may need for its first answer after a restore: emulation on a busy host is slow, death is noticed at once. */
  firstAnswerSecs: 60,
  /** Bytes that a guest may send ahead in one stream: what the host holds of it at most. A round trip to a guest under emulation takes about 1 ms. */
  streamWindowBytes: 256 * 1024,
  /** Bytes that a process which was lent an agent may leave unread, over all its streams. */
  relayBacklogBytes: 64 * 1024 * 1024,
  /** Connections to the one socket of all agents: a descriptor each. */
  agentConnectionsMax: 4096,
  /** Of those, such as have not named a sandbox yet: with more the oldest are closed. Clients name it at once. */
  agentNamelessMax: 1024,
  /** But none before it has had so long, milliseconds: in a burst the names of many are on their way. */
  agentNameGraceMs: 1000,
  /** How long they may take to when there are few, milliseconds. */
  agentNameMs: 10_000,
  /** A line that is asked or answered there may stand still for so long, milliseconds. */
  agentLineStallMs: 60_000,
  /** Of lines that are not whole yet, bytes in all. */
  agentLinesMaxBytes: 256 * 1024 * 1024,
  /** A frame or reply of the agent, bytes: the agent caps output at 64 MiB for each of stdout and stderr. */
  agentFrameMaxBytes: 256 * 1024 * 1024,
  /** Of an answer that the daemon reads in its main thread, bytes; a few milliseconds. Larger ones are read by a worker. */
  answerHereMaxBytes: 1024 * 1024,
  /** Of a reply that is no program's output, bytes: a listing of 100,000 files with long names. */
  agentAnswerMaxBytes: 64 * 1024 * 1024,
  /** Of a hello or the answer to a `fork`, bytes: a receipt is about 1 KiB, and kept. */
  receiptMaxBytes: 64 * 1024,
  /** Of a frame of a stream, bytes: agents send at most 64 KiB in one. */
  streamFrameMaxBytes: 1024 * 1024,
  /** Of a line of JSON in a stream, bytes: two paths, each byte of which may be six. */
  jsonLineMaxBytes: 64 * 1024,
  /** Characters of a reply outside its strings: a listing of 100,000 files has some 90 for each. Each may become 50 bytes of memory. */
  agentValuesMaxBytes: 16 * 1024 * 1024,
  /** Frames of one guest a second, and as many at once: an agent at its busiest, 4 KiB in each, sends half as many. One is 1 us of the main thread. */
  agentFramesPerSecond: 50_000,
  /** A frame that nobody waits for counts as so many: late answers and what was on its way in streams that were closed, no more. */
  strayFrameCost: 10,
  /** Bytes that wait for a guest to read them: the agent takes requests of 64 MiB, and one more may be on its way. */
  agentBacklogBytes: 128 * 1024 * 1024,
  /** A snapshot.json is a few KiB; anything larger is not one. */
  snapshotJsonMaxBytes: 1024 * 1024,
  /** Links between a snapshot and its base; the reference's limit. Depth costs nothing at spawn, but every link must be there. */
  chainDepthMax: 32,
  /** Milliseconds to wait for another command to publish or remove a tag, which is a check and a rename. */
  storeTurnMs: 10_000,
  /** Threads of one copy of memory in use: two saturate the memory of most hosts. */
  copiersMax: 64,
  /** Console bytes kept for each VM: enough for a kernel panic with its backtrace. */
  consoleTailBytes: 16 * 1024,
  /** Free bytes that must remain on the data file system after a snapshot. */
  diskReserveBytes: 64 * 1024 * 1024,
  /** A pack's manifest.toml: 33 links of 3 files and their disks are about 40 KiB. */
  packManifestMaxBytes: 1024 * 1024,
  /** All that a pack unpacks to, bytes: what a chain of the largest guests and its disks may have. */
  packTotalMaxBytes: 1024 * 1024 * 1024 * 1024,
  /** Unpacked to packed bytes: zstd reaches 300 on a root disk that is mostly holes. A decompression bomb has more. */
  packRatioMax: 2000,
  /** A pack's list of shared pages, bytes: 12 for each run; every second page of a guest of 8 GiB. */
  packPagesMaxBytes: 12 * 1024 * 1024,
  /** A pack's hashes of its root disk, bytes: 32 for each 64 KiB of 128 GiB, as large as disks are made here. */
  packBlocksMaxBytes: 64 * 1024 * 1024,
  /** Content of one zstd frame of a pack, bytes: twice what is written. A reader holds one for each processor. */
  packFrameMaxBytes: 4 * 1024 * 1024,
  /** A pack's seek table, bytes: 8 for each frame, of all that a pack may unpack to. */
  packTableMaxBytes: 16 * 1024 * 1024,
  /** Header of an age file, bytes: some 100 for each recipient. */
  ageHeaderMaxBytes: 64 * 1024,
  /** Bytes of a download whose size nobody has said: packs are a few GiB, and a server may never end. */
  transferMaxBytes: 64 * 1024 * 1024 * 1024,
  /** Connections for one file, however much each of them brought. */
  transferAttemptsMax: 100,
  /** Headers of an answer, bytes. */
  httpHeadersMaxBytes: 64 * 1024,
  /** A hub's registry.json, bytes: a version is about 300. */
  registryMaxBytes: 16 * 1024 * 1024,
  /** Files of a container image: large ones have some 200,000. The model of one takes about 400 bytes. */
  imageEntriesMax: 1_000_000,
  /** What an image's files have in all, bytes. */
  imageContentMaxBytes: 64 * 1024 * 1024 * 1024,
  /** Unpacked to packed bytes of a layer, from 256 MiB on: gzip reaches 1030 on zeros, zstd any number. */
  layerRatioMax: 200,
  layerRatioFromBytes: 256 * 1024 * 1024,
  /** An extended header of a tar archive, bytes: names and capabilities. */
  imageHeaderMaxBytes: 1024 * 1024,
  /** An image's manifest, index or configuration, bytes; registries take 4 MiB. */
  imageJsonMaxBytes: 4 * 1024 * 1024,
  /** Layers of an image: overlayfs cannot stack more, so nobody makes more. */
  imageLayersMax: 500,
  /** Device state, bytes: tens of KiB, since it has no RAM. It is packed from memory. */
  packStateMaxBytes: 256 * 1024 * 1024,
  /**
   * User ids of jails: 2^28 that nobody hands out. systemd's list of ranges (UIDS-GIDS) calls 1879048192 to 2147483647 unused; above it
   * programs take ids for negative.
   */
  jailUidFirst: 1_879_048_192,
  jailUids: 268_435_456,
  /** Where a user namespace does not map those: as many of the last that it does map. */
  jailUidsMapped: 4096,
  /** Processes and threads of one jail, all children of a template together: the most children, of some 8 threads each. */
  jailTasks: 65_536,
  /** Descriptors of a VMM: some 25, and two for each disk and volume; the shim lists at most 512. */
  jailDescriptors: 1024,
  /** Bytes that a VMM in jail may write into one file, its console: a guest could print until the disk is full, and so could 1,000. Device state is some 60 KiB. */
  jailFileBytes: 8 * 1024 * 1024,
} as const;
