// The control thread: waits on the control socket, does what the packets say.
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hotfork.h"
#include "sys.h"

enum { STACK_BYTES = 256 * 1024, GIVEN_MAX = HF_ENTRIES_MAX, KERNEL_SIGSET_BYTES = 8, SETTLE_TRIES = 3 };

struct control control = {.fd = -1};

union packet {
  struct hf_header header;
  struct hf_freeze freeze;
  struct hf_fork fork;
  struct hf_jail jail;
  struct hf_frozen frozen;
  struct hf_refused refused;
  uint8_t bytes[HF_PACKET_MAX];
};

// Static, not on the stack and not from malloc: one request is under way at a time, and a parked thread may
// hold malloc's lock.
static union packet packet;
static union packet reply;
static struct birth birth;
static int given[GIVEN_MAX];
static uint32_t given_count;

static struct hf_header header_for(enum hf_type type, uint32_t id) {
  return (struct hf_header){.magic = HF_MAGIC, .version = HF_VERSION, .type = (uint8_t)type, .id = id};
}

/** Waits until the socket can be read or written: children's control sockets are non-blocking. */
static void wait_for(short events) {
  struct pollfd one = {.fd = control.fd, .events = events};
  const int due_ms = affinity_due_ms();
  const struct timespec limit = {.tv_sec = due_ms / 1000, .tv_nsec = due_ms % 1000 * 1000000};
  if (due_ms == 0 || sys(SYS_ppoll, &one, 1, due_ms > 0 ? &limit : NULL, NULL, KERNEL_SIGSET_BYTES) == 0)
    affinity_unpin();
}

/** Sends one packet. Returns false when the engine is gone. */
static bool send_packet(const void* data, size_t bytes, const int* fds, uint32_t fd_count) {
  union {
    char bytes[CMSG_SPACE(sizeof(int) * (HF_ENTRIES_MAX + 1))];
    struct cmsghdr align;
  } control_data;
  struct iovec vector = {.iov_base = (void*)data, .iov_len = bytes};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (fd_count > 0) {
    message.msg_control = control_data.bytes;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
    struct cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
    memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
  }
  for (;;) {
    const long sent = sys(SYS_sendmsg, control.fd, &message, MSG_NOSIGNAL);
    if (sent >= 0) return true;
    if (sent == -EINTR) continue;
    if (sent == -EAGAIN) {
      wait_for(POLLOUT);
      continue;
    }
    if (sent == -ETOOMANYREFS) {
      // unix(7): more descriptors under way than RLIMIT_NOFILE. No event tells when the engine has taken
      // some.
      const struct timespec pause = {.tv_nsec = 1000000};
      sys(SYS_nanosleep, &pause, NULL);
      continue;
    }
    return false;
  }
}

static void refuse(uint32_t id, const struct refusal* why, uint32_t children) {
  const size_t length = strlen(why->reason);
  reply.refused = (struct hf_refused){
      .header = header_for(HF_REFUSED, id), .code = why->code, .number = why->number, .children = children};
  memcpy(reply.refused.reason, why->reason, length);
  send_packet(&reply, sizeof reply.refused + length, NULL, 0);
}

void child_fail(const struct refusal* why) {
  refuse(0, why, 0);
  sys(SYS_exit_group, CHILD_FAILED_STATUS);
  __builtin_unreachable();
}

static void send_state(enum hf_type type, uint32_t id) {
  const struct hf_state state = {.header = header_for(type, id),
                                 .pid = (uint32_t)control.pid,
                                 .phase = control.phase,
                                 .threads = threads.count,
                                 .features = control.clock_available ? HF_FEATURE_CLOCK : 0,
                                 .children = control.children,
                                 .control_fd = control.fd};
  send_packet(&state, sizeof state, NULL, 0);
}

/** Lets everything run again, after a freeze or a branch. */
static void thaw(void) {
  control.phase = HF_PHASE_RUNNING;
  park_release();
  clock_go();
}

/** Everything stands still and is known; or everything runs and `why` tells. */
static bool freeze(uint32_t flags, struct refusal* why) {
  // The threads of a child that has just begun may still be on their way into their frames.
  rebuild_settle();
  // A copy must not take a starting child's one processor for its threads' own wish.
  affinity_unpin();
  for (int attempt = 1;; attempt++) {
    // Looked at before the threads stop, so that a branched source does not wait for it; what may have
    // changed in between is looked at again.
    if (!fds_scan(why) || !memory_copyable(why)) return false;
    clock_stop();
    if (!park_all(why)) {
      clock_go();
      return false;
    }
    control.frozen_at_ns = now_ns();
    control.phase = HF_PHASE_FROZEN;
    if (fds_settle(why)) break;
    thaw();
    if (attempt == SETTLE_TRIES) return false;
  }
  if ((flags & HF_FREEZE_TRIM) != 0) memory_trim();
  return true;
}

static void on_freeze(uint32_t id, uint32_t flags) {
  struct refusal why;
  const int64_t start = now_ns();
  if (control.phase != HF_PHASE_RUNNING) {
    refuse(id, &(struct refusal){HF_WRONG_PHASE, 0, "already frozen"}, 0);
    return;
  }
  if (!freeze(flags, &why)) {
    refuse(id, &why, 0);
    return;
  }
  struct hf_frozen* frozen = &reply.frozen;
  *frozen = (struct hf_frozen){.header = header_for(HF_FROZEN, id),
                               .park_us = threads.park_us,
                               .freeze_us = (uint32_t)((now_ns() - start) / 1000),
                               .threads = threads.count,
                               .descriptors = descriptors.count};
  for (uint32_t i = 0; i < descriptors.count; i++) {
    const struct descriptor* one = &descriptors.descriptor[i];
    frozen->descriptor[i] = (struct hf_descriptor){.fd = one->fd,
                                                   .kind = (uint8_t)one->kind,
                                                   .disposition = (uint8_t)one->disposition,
                                                   .flags = (uint32_t)one->flags};
  }
  send_packet(frozen, sizeof *frozen + descriptors.count * sizeof *frozen->descriptor, NULL, 0);
}

/** A request that says what it means: entries within the packet, as many descriptors as it speaks of, the
 * control socket replaced. */
static bool check_fork(size_t bytes, struct refusal* why) {
  const struct hf_fork* request = &packet.fork;
  *why = (struct refusal){HF_MALFORMED, 0, "FORK: wrong length"};
  if (bytes < sizeof *request || request->entries > HF_ENTRIES_MAX) return false;
  if (bytes != sizeof *request + request->entries * sizeof *request->entry) return false;
  uint32_t wanted = 0;
  bool control_replaced = false;
  for (uint32_t i = 0; i < request->entries; i++) {
    const uint32_t how = request->entry[i].how;
    why->reason = "FORK: unknown way of replacing a descriptor";
    if (how > HF_CGROUP_INTO) return false;
    if (how == HF_GIVEN || how == HF_CGROUP_PROCS || how == HF_CGROUP_INTO) wanted++;
    const bool usable = how == HF_GIVEN || how == HF_PAIR_SEQPACKET;
    if (request->entry[i].fd == control.fd && usable) control_replaced = true;
  }
  why->reason = "FORK: not as many descriptors came as the entries name";
  if (wanted != given_count) return false;
  why->reason = "FORK: the control socket must be replaced by a seqpacket socket";
  why->number = control.fd;
  return control_replaced;
}

static void send_child(uint32_t id, uint32_t index, long pid, int64_t fork_ns, uint32_t pause_us) {
  int fds[HF_ENTRIES_MAX + 1] = {birth.pidfd};
  uint32_t count = 1;
  for (uint32_t i = 0; i < birth.sources.count; i++) {
    if (birth.sources.engine_end[i] >= 0) fds[count++] = birth.sources.engine_end[i];
  }
  const struct hf_child child = {.header = header_for(HF_CHILD, id),
                                 .index = index,
                                 .pid = (uint32_t)pid,
                                 .fork_us = (uint32_t)(fork_ns / 1000),
                                 .pause_us = pause_us};
  send_packet(&child, sizeof child, fds, count);
}

/** One child, not yet reported. */
static bool make_child(int64_t* fork_ns, long* pid, struct refusal* why) {
  if (!fds_make_sources(&packet.fork, given, &birth.sources, why)) return false;
  const int64_t start = now_ns();
  *pid = fork_child(&birth);
  *fork_ns = now_ns() - start;
  fds_close_sources(&birth.sources, *pid < 0);
  if (*pid >= 0) {
    control.children++;
    return true;
  }
  *why = (struct refusal){HF_SYSCALL, (int)-*pid, "clone"};
  return false;
}

static void close_reported(void) {
  sys(SYS_close, birth.pidfd);
  for (uint32_t i = 0; i < birth.sources.count; i++) {
    if (birth.sources.engine_end[i] >= 0) sys(SYS_close, birth.sources.engine_end[i]);
  }
}

static void prepare_birth(const struct hf_fork* request) {
  birth.frozen = (request->flags & HF_FORK_FROZEN) != 0;
  birth.cgroup_into = -1;
  birth.pin = (request->flags & HF_FORK_PIN) != 0 && !birth.frozen;
  birth.spread = -1;
  // Whose parent an engine is no longer, that cannot give its copies a death signal either.
  birth.tied = (request->flags & HF_FORK_TIED) != 0 || control.tied;
  uint32_t next = 0;
  for (uint32_t i = 0; i < request->entries; i++) {
    const uint32_t how = request->entry[i].how;
    if (how == HF_CGROUP_INTO) birth.cgroup_into = given[next];
    if (how == HF_GIVEN || how == HF_CGROUP_PROCS || how == HF_CGROUP_INTO) next++;
  }
}

static void on_fork(uint32_t id) {
  const struct hf_fork* request = &packet.fork;
  struct refusal why;
  const int64_t start = now_ns();
  uint32_t made = 0;
  prepare_birth(request);
  bool fine = fds_plan(request, &why);
  for (; fine && made < request->count; made++) {
    int64_t fork_ns;
    long pid;
    if (request->count > 1) birth.spread = (int)made;
    fine = make_child(&fork_ns, &pid, &why);
    if (!fine) break;
    send_child(id, request->first_index + made, pid, fork_ns, 0);
    close_reported();
  }
  if (!fine) {
    refuse(id, &why, made);
    return;
  }
  const struct hf_done done = {
      .header = header_for(HF_DONE, id), .children = made, .total_us = (uint32_t)((now_ns() - start) / 1000)};
  send_packet(&done, sizeof done, NULL, 0);
}

/** Freeze, one child, release: the pause of the source is the park and the fork, and nothing that could wait.
 */
static void on_branch(uint32_t id) {
  const struct hf_fork* request = &packet.fork;
  struct refusal why;
  const int64_t start = now_ns();
  int64_t fork_ns = 0;
  long pid = 0;
  prepare_birth(request);
  if (!freeze(0, &why)) {
    refuse(id, &why, 0);
    return;
  }
  const bool fine = fds_plan(request, &why) && make_child(&fork_ns, &pid, &why);
  const uint32_t pause_us = (uint32_t)((now_ns() - control.frozen_at_ns) / 1000) + threads.park_us;
  thaw();
  if (!fine) {
    refuse(id, &why, 0);
    return;
  }
  send_child(id, request->first_index, pid, fork_ns, pause_us);
  close_reported();
  const struct hf_done done = {.header = header_for(HF_DONE, id),
                               .children = 1,
                               .total_us = (uint32_t)((now_ns() - start) / 1000),
                               .pause_us = pause_us,
                               .park_us = threads.park_us};
  send_packet(&done, sizeof done, NULL, 0);
}

static void on_release(uint32_t id) {
  if (control.phase != HF_PHASE_FROZEN) {
    refuse(id, &(struct refusal){HF_WRONG_PHASE, 0, "not frozen"}, 0);
    return;
  }
  const struct hf_released released = {.header = header_for(HF_RELEASED, id),
                                       .threads = threads.count,
                                       .frozen_ms = (uint32_t)((now_ns() - control.frozen_at_ns) / 1000000)};
  send_packet(&released, sizeof released, NULL, 0);
  if (control.threads_exist)
    thaw();
  else
    run_on_stack(nursery_top(), rebuild_all, NULL);  // comes back to control_loop in a new thread
}

static void on_jail(uint32_t id, size_t bytes) {
  const struct hf_jail request = packet.jail;
  struct refusal why = {HF_MALFORMED, 0, "JAIL: wrong length"};
  if (bytes == sizeof request && control.phase == HF_PHASE_RUNNING && jail_enter(&request, &why)) {
    const struct hf_header jailed = header_for(HF_JAILED, id);
    send_packet(&jailed, sizeof jailed, NULL, 0);
    return;
  }
  if (control.phase != HF_PHASE_RUNNING) why = (struct refusal){HF_WRONG_PHASE, 0, "JAIL: frozen"};
  refuse(id, &why, 0);
}

static void handle(size_t bytes) {
  const struct hf_header* header = &packet.header;
  struct refusal why = {HF_MALFORMED, 0, "not a packet of this protocol version"};
  if (bytes < sizeof *header || header->magic != HF_MAGIC || header->version != HF_VERSION) {
    refuse(bytes >= sizeof *header ? header->id : 0, &why, 0);
    return;
  }
  const uint32_t id = header->id;
  switch (header->type) {
    case HF_FREEZE:
      on_freeze(id, bytes >= sizeof packet.freeze ? packet.freeze.flags : 0);
      return;
    case HF_RELEASE:
      on_release(id);
      return;
    case HF_STATUS:
      send_state(HF_STATE, id);
      return;
    case HF_JAIL:
      on_jail(id, bytes);
      return;
    case HF_FORK:
    case HF_BRANCH:
      if (!check_fork(bytes, &why)) break;
      why = (struct refusal){HF_WRONG_PHASE, 0,
                             header->type == HF_FORK ? "FORK: freeze first" : "BRANCH: frozen"};
      if ((control.phase == HF_PHASE_FROZEN) != (header->type == HF_FORK)) break;
      if (header->type == HF_FORK)
        on_fork(id);
      else
        on_branch(id);
      return;
    default:
      why.reason = "unknown type of packet";
  }
  refuse(id, &why, 0);
}

/** Receives one packet and its descriptors. Returns its length; 0 when the engine has closed the socket. */
static long receive(void) {
  union {
    char bytes[CMSG_SPACE(sizeof(int) * GIVEN_MAX)];
    struct cmsghdr align;
  } control_data;
  struct iovec vector = {.iov_base = packet.bytes, .iov_len = sizeof packet};
  struct msghdr message;
  long bytes;
  for (;;) {
    message = (struct msghdr){.msg_iov = &vector,
                              .msg_iovlen = 1,
                              .msg_control = control_data.bytes,
                              .msg_controllen = sizeof control_data};
    bytes = sys(SYS_recvmsg, control.fd, &message, MSG_CMSG_CLOEXEC);
    if (bytes == -EAGAIN)
      wait_for(POLLIN);
    else if (bytes != -EINTR)
      break;
  }
  given_count = 0;
  if (bytes < 0) return 0;
  for (struct cmsghdr* one = CMSG_FIRSTHDR(&message); one != NULL; one = CMSG_NXTHDR(&message, one)) {
    if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
    given_count = (uint32_t)((one->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(given, CMSG_DATA(one), given_count * sizeof(int));
  }
  fds_ignore(given, given_count);
  return bytes;
}

void control_loop(void* unused) {
  (void)unused;
  for (;;) {
    const long bytes = receive();
    if (bytes == 0) break;
    handle((size_t)bytes);
    for (uint32_t i = 0; i < given_count; i++) sys(SYS_close, given[i]);
  }
  // Nobody can ever release a frozen process whose engine is gone, and nobody may even know of a copy: the
  // other end was on its way to whoever asked for it. The program itself goes on; it just cannot be forked
  // any more.
  if (control.phase == HF_PHASE_FROZEN || control.copy) sys(SYS_exit_group, 0);
  for (;;) sys(SYS_pause);
}

static void* control_main(void* unused) {
  if (!thread_learn_layout()) {
    static const char text[] = "forkd hotfork: this libc's thread descriptor is not understood\n";
    sys(SYS_write, 2, text, sizeof text - 1);
    return NULL;
  }
  control.tcb = thread_tcb();
  // What lies above stays as libc left it; control_loop never returns.
  control.stack = ((uintptr_t)__builtin_frame_address(0) - 256) & ~(uintptr_t)15;
  send_state(HF_HELLO, 0);
  run_on_stack(control.stack, control_loop, unused);
}

static bool start_control_thread(void) {
  pthread_attr_t attributes;
  pthread_t thread;
  sigset_t all;
  sigset_t old;
  if (pthread_attr_init(&attributes) != 0) return false;
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  // Signals of the program are not ours to take. QEMU's termination signals must stay pending for its
  // signalfd.
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  const int error = pthread_create(&thread, &attributes, control_main, NULL);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  pthread_attr_destroy(&attributes);
  if (error == 0) pthread_setname_np(thread, "forkd-hotfork");
  return error == 0;
}

__attribute__((constructor)) static void start(void) {
  const char* number = getenv("FORKD_HOTFORK_FD");
  if (number == NULL) return;
  control.fd = atoi(number);
  // Helpers that the program runs must not load the shim, nor believe the descriptor to be theirs.
  unsetenv("LD_PRELOAD");
  unsetenv("FORKD_HOTFORK_FD");
  fcntl(control.fd, F_SETFD, FD_CLOEXEC);
  control.pid = getpid();
  control.threads_exist = true;
  control.null_fd = control.pagemap_fd = -1;
  const char* line = getenv("FORKD_HOTFORK_LINE");
  control.line_fd = line == NULL ? -1 : atoi(line);
  unsetenv("FORKD_HOTFORK_LINE");
  if (line != NULL) fcntl(control.line_fd, F_SETFD, FD_CLOEXEC);
  jail_init();
  control.clock_available = clock_init();
  sched_getaffinity(0, sizeof control.affinity, &control.affinity);
  if (!ram_init() || !disk_init() || !fork_init() || !park_init() || !start_control_thread()) {
    fprintf(stderr, "forkd hotfork: cannot start\n");
    _exit(CHILD_FAILED_STATUS);
  }
}
