/** Every maximum in one place, with its unit and its reason. */
export const limits = {
  /** Children of one request. The reference's REST limit is 1,000; a local fan-out of 4,000 is what its addressing should reach. */
  childrenMax: 4000,
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
  /** A frame or reply of the agent, bytes: the agent caps output at 64 MiB for each of stdout and stderr. */
  agentFrameMaxBytes: 256 * 1024 * 1024,
  /** A snapshot.json is a few KiB; anything larger is not one. */
  snapshotJsonMaxBytes: 1024 * 1024,
  /** Links between a snapshot and its base; the reference's limit. Depth costs nothing at spawn, but every link must be there. */
  chainDepthMax: 32,
  /** Milliseconds to wait for another command to publish or remove a tag, which is a check and a rename. */
  storeTurnMs: 10_000,
  /** Console bytes kept for each VM: enough for a kernel panic with its backtrace. */
  consoleTailBytes: 16 * 1024,
  /** Free bytes that must remain on the data file system after a snapshot. */
  diskReserveBytes: 64 * 1024 * 1024,
} as const;
