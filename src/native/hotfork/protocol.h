// The wire protocol of the control socket: one message a packet on an AF_UNIX SOCK_SEQPACKET socket, little
// endian, descriptors by SCM_RIGHTS. docs/reference/hotfork-protocol.md draws the sequences and is checked
// against this file.
#ifndef FORKD_HOTFORK_PROTOCOL_H_
#define FORKD_HOTFORK_PROTOCOL_H_

#include <stdint.h>

enum { HF_MAGIC = 0x4648, HF_VERSION = 1 };

/** A packet is never larger; a FROZEN reply with HF_DESCRIPTORS_MAX entries fits. */
enum { HF_PACKET_MAX = 16384, HF_DESCRIPTORS_MAX = 512, HF_ENTRIES_MAX = 120 };

enum hf_type {
  // engine -> shim
  HF_FREEZE = 1,
  HF_FORK = 2,
  HF_RELEASE = 3,
  HF_BRANCH = 4,
  HF_STATUS = 5,
  HF_JAIL = 6,
  // shim -> engine
  HF_HELLO = 128,
  HF_FROZEN = 129,
  HF_CHILD = 130,
  HF_DONE = 131,
  HF_RELEASED = 132,
  HF_STATE = 133,
  HF_REFUSED = 134,
  HF_JAILED = 135,
};

struct hf_header {
  uint16_t magic;
  uint8_t version;
  uint8_t type;
  /** Chosen by the engine, echoed in every reply to the request. 0 in HELLO. */
  uint32_t id;
};

/** HELLO, STATE. */
struct hf_state {
  struct hf_header header;
  /** As its own pid namespace numbers it. */
  uint32_t pid;
  /** enum hf_phase */
  uint32_t phase;
  /** Threads known at the last freeze, the control thread not counted. */
  uint32_t threads;
  /** HF_FEATURE_* */
  uint32_t features;
  /** Children made by this process so far. */
  uint64_t children;
  /** Number of the control descriptor: FORK must replace it. */
  int32_t control_fd;
  uint32_t reserved;
};

enum hf_phase { HF_PHASE_RUNNING = 0, HF_PHASE_FROZEN = 1 };

/** The shim stops the guest's clocks while frozen. Without it the engine must stop the guest itself (QMP
 * `stop`). */
enum { HF_FEATURE_CLOCK = 1 };

struct hf_freeze {
  struct hf_header header;
  /** HF_FREEZE_* */
  uint32_t flags;
};

/** Before parking, drop clean file-backed pages of private mappings from the page tables: cheaper forks. */
enum { HF_FREEZE_TRIM = 1 };

enum hf_kind {
  HF_KIND_UNKNOWN = 0,
  HF_KIND_EVENTFD = 1,
  HF_KIND_SIGNALFD = 2,
  HF_KIND_SOCKET = 3,
  HF_KIND_PIPE = 4,
  HF_KIND_FILE = 5,
  HF_KIND_MEMFD = 6,
  HF_KIND_DEVICE = 7,
  HF_KIND_TUN = 8,
  HF_KIND_TTY = 9,
  HF_KIND_DIRECTORY = 10,
  HF_KIND_EPOLL = 11,
};

enum hf_disposition {
  /** The shim refuses to fork this process. */
  HF_REFUSE = 0,
  /** The child gets the same open file description: read-only files, harmless devices. */
  HF_SHARE = 1,
  /** The shim makes an equal one of the child's own: eventfd, signalfd, empty epoll. */
  HF_RECREATE = 2,
  /** The FORK request must say what the child gets in its place. */
  HF_REPLACE = 3,
};

struct hf_descriptor {
  int32_t fd;
  uint8_t kind;
  uint8_t disposition;
  uint16_t reserved;
  /** O_* as fcntl F_GETFL tells. */
  uint32_t flags;
};

/** Of a running process, once and for all. Refused half way, it is of no more use. */
struct hf_jail {
  struct hf_header header;
  /** HF_JAIL_* */
  uint32_t flags;
  uint32_t uid;
  uint32_t gid;
};

enum {
  /** An empty root. The process was started in a mount namespace of its own. */
  HF_JAIL_ROOT = 1,
  /** `uid` and `gid` from now on, and no capability. */
  HF_JAIL_USER = 2,
  /** No filter of system calls: a monitor whose calls nobody has listed yet. */
  HF_JAIL_ANY_CALL = 4,
  /** With ROOT: it was started in a pid namespace of its own, and /proc has to be that one's. */
  HF_JAIL_PIDS = 8,
  /** It reaches the host's network by sockets of its own (libslirp), and may make a hole in its disk. */
  HF_JAIL_SOCKETS = 16,
};

struct hf_frozen {
  struct hf_header header;
  /** From the first signal until the last thread was parked. */
  uint32_t park_us;
  /** Whole request, descriptor scan and trimming included. */
  uint32_t freeze_us;
  uint32_t threads;
  uint32_t descriptors;
  struct hf_descriptor descriptor[];
};

enum hf_how {
  /** The next descriptor that came with the request. With count > 1 all children share it. */
  HF_GIVEN = 0,
  /** One end of a new socket pair; the other end comes with CHILD. */
  HF_PAIR_STREAM = 1,
  HF_PAIR_SEQPACKET = 2,
  /** Write end of a new pipe; the read end comes with CHILD. */
  HF_PIPE_WRITE = 3,
  HF_NULL = 4,
  HF_CLOSE = 5,
  /** Keep the template's own: the engine vouches that sharing is harmless. */
  HF_KEEP = 6,
  /** Not a replacement: the child writes itself into this open cgroup.procs before anything else. Takes a
     GIVEN descriptor. */
  HF_CGROUP_PROCS = 7,
  /** Not a replacement: the child is born in this cgroup v2 directory (CLONE_INTO_CGROUP). Takes a GIVEN
     descriptor. */
  HF_CGROUP_INTO = 8,
};

struct hf_entry {
  /** Descriptor number in the child; ignored for HF_CGROUP_*. */
  int32_t fd;
  uint32_t how;
};

/** FORK and BRANCH. */
struct hf_fork {
  struct hf_header header;
  /** HF_FORK_* */
  uint32_t flags;
  uint32_t count;
  /** Index of the first child; the others follow. */
  uint32_t first_index;
  uint32_t entries;
  struct hf_entry entry[];
};

enum {
  /** The child stays frozen: one thread, nothing rebuilt. It can be forked again, and RELEASEd at any time.
   */
  HF_FORK_FROZEN = 1,
  /** For its first quarter of a second the child stays on one processor: where it is born, or in turn for
     count > 1. */
  HF_FORK_PIN = 2,
  /** The child has no death signal: it lives as long as somebody holds the other end of its control socket,
     whoever that is, and so does every copy of it. */
  HF_FORK_TIED = 4,
};

/** Descriptors with it: the pidfd, then one for each PAIR or PIPE entry in the order of the request. */
struct hf_child {
  struct hf_header header;
  uint32_t index;
  /** As its own pid namespace numbers it; the pidfd means the same process anywhere. */
  uint32_t pid;
  uint32_t fork_us;
  /** BRANCH: how long the source stood still. Otherwise 0. */
  uint32_t pause_us;
};

/** Ends a FORK or BRANCH that made all its children. */
struct hf_done {
  struct hf_header header;
  uint32_t children;
  uint32_t total_us;
  uint32_t pause_us;
  uint32_t park_us;
};

struct hf_released {
  struct hf_header header;
  uint32_t threads;
  uint32_t frozen_ms;
};

enum hf_code {
  HF_MALFORMED = 1,
  HF_WRONG_PHASE = 2,
  /** A thread would not park, or libc's thread descriptor does not look as expected. */
  HF_THREAD = 3,
  /** A descriptor of a kind that cannot be copied. `number` is the descriptor. */
  HF_DESCRIPTOR = 4,
  /** A descriptor that must be replaced was not. `number` is the descriptor. */
  HF_UNREPLACED = 5,
  /** A system call failed. `number` is errno. */
  HF_SYSCALL = 6,
  /** State that no copy can have: kernel AIO contexts, POSIX timers. */
  HF_UNSUPPORTED = 7,
};

/** Ends a request. A FORK may have made `children` children before. Also the last word of a child that could
 * not start. */
struct hf_refused {
  struct hf_header header;
  uint32_t code;
  int32_t number;
  uint32_t children;
  /** Text, not terminated: to the end of the packet. */
  char reason[];
};

#endif  // FORKD_HOTFORK_PROTOCOL_H_
