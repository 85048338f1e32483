// What each open descriptor is, and what a child gets in its place.
//
// A forked process shares every open file description with its siblings: an eventfd would wake the wrong one,
// a socket would be read by whoever comes first. So each descriptor is told apart by kind, and one whose kind
// is not known here is a reason to refuse, never to share.
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "hotfork.h"
#include "sys.h"

enum { KERNEL_SIGSET_BYTES = 8, MEM_MAJOR = 1, MISC_MAJOR = 10, TUN_MINOR = 200 };

struct descriptors descriptors;

struct linux_dirent64 {
  uint64_t ino;
  int64_t off;
  uint16_t reclen;
  uint8_t type;
  char name[];
};

static char* append_number(char* at, unsigned number) {
  char digits[12];
  int n = 0;
  do {
    digits[n++] = (char)('0' + number % 10);
  } while ((number /= 10) != 0);
  while (n > 0) *at++ = digits[--n];
  *at = '\0';
  return at;
}

/** Path of a descriptor in a directory of /proc/self. */
static void proc_path(char* path, const char* directory, int fd) {
  const size_t length = strlen(directory);
  memcpy(path, directory, length);
  append_number(path + length, (unsigned)fd);
}

/** Reads a small file whole and terminates it. Returns its length or -errno. */
static long read_small(const char* path, char* buffer, size_t bytes) {
  const int fd = open_ro(path, 0);
  if (fd < 0) return fd;
  long total = 0;
  long got;
  while ((size_t)total < bytes - 1 &&
         (got = sys(SYS_read, fd, buffer + total, bytes - 1 - (size_t)total)) > 0)
    total += got;
  sys(SYS_close, fd);
  buffer[total] = '\0';
  return total;
}

/** Value of a `name:  digits` line of fdinfo, or -1. */
static int64_t fdinfo_value(const char* text, const char* name, int base) {
  const char* at = strstr(text, name);
  if (at == NULL) return -1;
  at += strlen(name);
  while (*at == ' ' || *at == '\t') at++;
  uint64_t value = 0;
  for (;; at++) {
    int digit;
    if (*at >= '0' && *at <= '9')
      digit = *at - '0';
    else if (base == 16 && *at >= 'a' && *at <= 'f')
      digit = *at - 'a' + 10;
    else
      break;
    value = value * (unsigned)base + (unsigned)digit;
  }
  return (int64_t)value;
}

static bool starts_with(const char* text, const char* prefix) {
  return strncmp(text, prefix, strlen(prefix)) == 0;
}

/** An anonymous inode: told by the name the kernel gave it, its state by fdinfo. */
static void sort_out_anonymous(struct descriptor* one, const char* name) {
  char path[48];
  char info[1024];
  proc_path(path, "/proc/self/fdinfo/", one->fd);
  if (read_small(path, info, sizeof info) < 0) return;
  if (starts_with(name, "anon_inode:[eventfd]")) {
    one->kind = HF_KIND_EVENTFD;
    one->eventfd_id = fdinfo_value(info, "eventfd-id:", 10);
    one->count = (uint64_t)fdinfo_value(info, "eventfd-count:", 16);
    // Linux 6.5 and later tell; before that nobody can. QEMU and glib use none.
    one->semaphore = fdinfo_value(info, "eventfd-semaphore:", 10) == 1;
    one->disposition = HF_RECREATE;
  } else if (starts_with(name, "anon_inode:[signalfd]")) {
    one->kind = HF_KIND_SIGNALFD;
    one->sigmask = (uint64_t)fdinfo_value(info, "sigmask:", 16);
    one->disposition = HF_RECREATE;
  } else if (starts_with(name, "anon_inode:[eventpoll]")) {
    one->kind = HF_KIND_EPOLL;
    // QEMU makes one at start and uses it only above 64 descriptors. Registrations cannot be copied exactly:
    // edge and one-shot state is not told, and they may refer to descriptions that no number leads to any
    // more.
    one->disposition = strstr(info, "tfd:") == NULL ? HF_RECREATE : HF_REFUSE;
  }
}

static void sort_out_character_device(struct descriptor* one, dev_t device) {
  const unsigned major_number = major(device);
  const unsigned minor_number = minor(device);
  if (major_number == MEM_MAJOR) {
    // null 3, zero 5, full 7, random 8, urandom 9: no state. mem and port do not belong in a monitor.
    one->kind = HF_KIND_DEVICE;
    const bool harmless = minor_number == 3 || minor_number == 5 || (minor_number >= 7 && minor_number <= 9);
    one->disposition = harmless ? HF_SHARE : HF_REFUSE;
  } else if (major_number == MISC_MAJOR && minor_number == TUN_MINOR) {
    one->kind = HF_KIND_TUN;
    one->disposition = HF_REPLACE;
  } else if (major_number == 4 || major_number == 5 || (major_number >= 136 && major_number <= 143)) {
    one->kind = HF_KIND_TTY;
    one->disposition = HF_REPLACE;
  }
}

/** A file that is only read may be shared as long as its user passes offsets (pread); QEMU's block layer
 * does. */
static void sort_out_file(struct descriptor* one, const char* name) {
  const bool readable_only = (one->flags & O_ACCMODE) == O_RDONLY;
  one->kind = HF_KIND_FILE;
  if (starts_with(name, "/memfd:")) {
    one->kind = HF_KIND_MEMFD;
    // One child that breaks out of its guest must not be able to write the memory that all others map.
    const long seals = sys(SYS_fcntl, one->fd, F_GET_SEALS);
    const bool sealed = seals >= 0 && (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0;
    one->disposition = readable_only || sealed ? HF_SHARE : HF_REPLACE;
    return;
  }
  one->disposition = readable_only ? HF_SHARE : HF_REPLACE;
}

static bool sort_out(struct descriptor* one, struct refusal* why) {
  char path[48];
  char name[128];
  struct stat status;
  one->kind = HF_KIND_UNKNOWN;
  one->disposition = HF_REFUSE;
  one->entry = -1;
  one->flags = (int)sys(SYS_fcntl, one->fd, F_GETFL);
  one->cloexec = (sys(SYS_fcntl, one->fd, F_GETFD) & FD_CLOEXEC) != 0;
  proc_path(path, "/proc/self/fd/", one->fd);
  const long length = sys(SYS_readlink, path, name, sizeof name - 1);
  const long result = sys(SYS_fstat, one->fd, &status);
  if (length < 0 || result < 0) {
    *why = (struct refusal){HF_SYSCALL, (int)-(length < 0 ? length : result), "cannot look at a descriptor"};
    return false;
  }
  name[length] = '\0';
  switch (status.st_mode & S_IFMT) {
    case S_IFSOCK:
      one->kind = HF_KIND_SOCKET;
      one->disposition = HF_REPLACE;
      break;
    case S_IFIFO:
      one->kind = HF_KIND_PIPE;
      one->disposition = HF_REPLACE;
      break;
    case S_IFREG:
      sort_out_file(one, name);
      break;
    case S_IFDIR:
      one->kind = HF_KIND_DIRECTORY;
      one->disposition = HF_SHARE;
      break;
    case S_IFCHR:
      sort_out_character_device(one, status.st_rdev);
      break;
    default:
      // Anonymous inodes have no type bits. Block devices and the rest stay unknown.
      if (starts_with(name, "anon_inode:")) sort_out_anonymous(one, name);
  }
  if (one->disposition != HF_REFUSE) return true;
  *why = (struct refusal){HF_DESCRIPTOR, one->fd, "a descriptor of a kind that cannot be copied"};
  if (one->kind == HF_KIND_EPOLL)
    why->reason = "an epoll instance in use cannot be copied";
  else if (starts_with(name, "anon_inode:[timerfd]"))
    why->reason = "a timerfd cannot be copied";
  else if (starts_with(name, "anon_inode:[io_uring]"))
    why->reason = "an io_uring cannot be copied";
  else if (starts_with(name, "anon_inode:inotify"))
    why->reason = "an inotify instance cannot be copied";
  else if (starts_with(name, "anon_inode:[userfaultfd]"))
    why->reason = "a userfaultfd cannot be copied";
  else if (starts_with(name, "anon_inode:kvm") || starts_with(name, "/dev/kvm"))
    why->reason = "KVM cannot be carried over a fork";
  return false;
}

static const int* ignored;
static uint32_t ignored_count;

void fds_ignore(const int* given, uint32_t count) {
  ignored = given;
  ignored_count = count;
}

static bool is_ignored(int fd) {
  if (fd == control.pagemap_fd || fd == control.line_fd) return true;
  for (uint32_t i = 0; i < ignored_count; i++) {
    if (ignored[i] == fd) return true;
  }
  return false;
}

/** Calls `visit` with each open descriptor but the one that lists them, those that came with the request, and
 * the shim's own: no copy gets the one, every copy the other. */
static bool each_descriptor(bool (*visit)(int fd, struct refusal*), struct refusal* why) {
  char buffer[4096] __attribute__((aligned(8)));
  const int directory = open_ro("/proc/self/fd", O_DIRECTORY);
  long bytes = directory;
  bool going = directory >= 0;
  while (going && (bytes = sys(SYS_getdents64, directory, buffer, sizeof buffer)) > 0) {
    for (long at = 0; going && at < bytes;) {
      const struct linux_dirent64* entry = (const void*)(buffer + at);
      at += entry->reclen;
      if (entry->name[0] == '.') continue;
      int fd = 0;
      for (const char* digit = entry->name; *digit != '\0'; digit++) fd = fd * 10 + (*digit - '0');
      if (fd != directory && !is_ignored(fd)) going = visit(fd, why);
    }
  }
  if (directory >= 0) sys(SYS_close, directory);
  if (bytes < 0) *why = (struct refusal){HF_SYSCALL, (int)-bytes, "cannot list the descriptors"};
  return going && bytes >= 0;
}

static bool add_descriptor(int fd, struct refusal* why) {
  if (descriptors.count == HF_DESCRIPTORS_MAX) {
    *why = (struct refusal){HF_DESCRIPTOR, HF_DESCRIPTORS_MAX, "too many descriptors"};
    return false;
  }
  struct descriptor* one = &descriptors.descriptor[descriptors.count++];
  memset(one, 0, sizeof *one);
  one->fd = fd;
  return sort_out(one, why);
}

bool fds_scan(struct refusal* why) {
  descriptors.count = 0;
  return each_descriptor(add_descriptor, why);
}

/** What a running program changes behind its descriptors and a copy needs exactly: the counters of eventfds.
 */
static bool settle_count(struct descriptor* one, struct refusal* why) {
  char path[48];
  char info[512];
  proc_path(path, "/proc/self/fdinfo/", one->fd);
  const long result = read_small(path, info, sizeof info);
  if (result > 0 && fdinfo_value(info, "eventfd-id:", 10) == one->eventfd_id) {
    one->count = (uint64_t)fdinfo_value(info, "eventfd-count:", 16);
    return true;
  }
  *why = (struct refusal){HF_DESCRIPTOR, one->fd, "descriptors were opened or closed meanwhile: try again"};
  return false;
}

static uint32_t settled;

static bool settle_descriptor(int fd, struct refusal* why) {
  // /proc lists descriptors in rising order, so the two lists run side by side.
  if (settled == descriptors.count || descriptors.descriptor[settled].fd != fd) {
    *why = (struct refusal){HF_DESCRIPTOR, fd, "descriptors were opened or closed meanwhile: try again"};
    return false;
  }
  struct descriptor* one = &descriptors.descriptor[settled++];
  return one->kind != HF_KIND_EVENTFD || settle_count(one, why);
}

bool fds_settle(struct refusal* why) {
  settled = 0;
  if (!each_descriptor(settle_descriptor, why)) return false;
  if (settled == descriptors.count) return true;
  *why = (struct refusal){HF_DESCRIPTOR, descriptors.descriptor[settled].fd,
                          "descriptors were opened or closed meanwhile: try again"};
  return false;
}

static struct descriptor* find_descriptor(int fd) {
  for (uint32_t i = 0; i < descriptors.count; i++) {
    if (descriptors.descriptor[i].fd == fd) return &descriptors.descriptor[i];
  }
  return NULL;
}

static bool is_cgroup(uint32_t how) {
  return how == HF_CGROUP_PROCS || how == HF_CGROUP_INTO;
}

bool fds_plan(const struct hf_fork* request, struct refusal* why) {
  for (uint32_t i = 0; i < descriptors.count; i++) descriptors.descriptor[i].entry = -1;
  for (uint32_t i = 0; i < request->entries; i++) {
    if (is_cgroup(request->entry[i].how)) continue;
    struct descriptor* one = find_descriptor(request->entry[i].fd);
    if (one == NULL) {
      *why =
          (struct refusal){HF_MALFORMED, request->entry[i].fd, "an entry for a descriptor that is not open"};
      return false;
    }
    one->entry = (int)i;
  }
  for (uint32_t i = 0; i < descriptors.count; i++) {
    const struct descriptor* one = &descriptors.descriptor[i];
    if (one->disposition != HF_REPLACE || one->entry >= 0) continue;
    *why =
        (struct refusal){HF_UNREPLACED, one->fd, "a descriptor that children cannot share was not replaced"};
    return false;
  }
  return true;
}

static long make_pair(uint32_t how, int ends[2]) {
  switch (how) {
    case HF_PAIR_STREAM:
      return sys(SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends);
    case HF_PAIR_SEQPACKET:
      return sys(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends);
    default: {
      int pipe_ends[2];
      const long result = sys(SYS_pipe2, pipe_ends, O_CLOEXEC | O_NONBLOCK);
      ends[0] = pipe_ends[1];
      ends[1] = pipe_ends[0];
      return result;
    }
  }
}

bool fds_make_sources(const struct hf_fork* request, const int* given, struct fd_sources* sources,
                      struct refusal* why) {
  sources->count = 0;
  for (uint32_t i = 0; i < request->entries; i++) {
    int ends[2] = {-1, -1};
    long result = 0;
    switch (request->entry[i].how) {
      case HF_GIVEN:
      case HF_CGROUP_PROCS:
      case HF_CGROUP_INTO:
        ends[0] = *given++;
        break;
      case HF_PAIR_STREAM:
      case HF_PAIR_SEQPACKET:
      case HF_PIPE_WRITE:
        result = make_pair(request->entry[i].how, ends);
        break;
      case HF_NULL:
        result = ends[0] = control.null_fd >= 0
                               ? (int)sys(SYS_fcntl, control.null_fd, F_DUPFD_CLOEXEC, 0)
                               : (int)sys(SYS_openat, AT_FDCWD, "/dev/null", O_RDWR | O_CLOEXEC);
        break;
      default:
        break;
    }
    if (result < 0) {
      *why = (struct refusal){HF_SYSCALL, (int)-result, "cannot make a child's descriptors"};
      fds_close_sources(sources, true);
      return false;
    }
    sources->how[i] = request->entry[i].how;
    sources->child_end[i] = ends[0];
    sources->engine_end[i] = ends[1];
    sources->count = i + 1;
  }
  return true;
}

void fds_close_sources(const struct fd_sources* sources, bool engine_ends) {
  for (uint32_t i = 0; i < sources->count; i++) {
    // Given ones belong to the request: more children may need them.
    const bool given = sources->how[i] == HF_GIVEN || is_cgroup(sources->how[i]);
    if (sources->child_end[i] >= 0 && !given) sys(SYS_close, sources->child_end[i]);
    if (engine_ends && sources->engine_end[i] >= 0) sys(SYS_close, sources->engine_end[i]);
  }
}

/** Moves a new descriptor to the number it stands for. */
static long move_to(long made, const struct descriptor* one) {
  if (made < 0 || made == one->fd) return made;
  const long result = sys(SYS_dup3, made, one->fd, one->cloexec ? O_CLOEXEC : 0);
  sys(SYS_close, made);
  return result;
}

/** An eventfd, signalfd or epoll of the child's own, in the state of the template's. */
static long recreate(const struct descriptor* one) {
  const int cloexec = one->cloexec ? O_CLOEXEC : 0;
  const int nonblock = one->flags & O_NONBLOCK;
  // Closed first, so that the number is most often the lowest free one and needs no moving.
  sys(SYS_close, one->fd);
  if (one->kind == HF_KIND_EPOLL) return move_to(sys(SYS_epoll_create1, cloexec), one);
  if (one->kind == HF_KIND_SIGNALFD) {
    return move_to(sys(SYS_signalfd4, -1, &one->sigmask, KERNEL_SIGSET_BYTES, cloexec | nonblock), one);
  }
  for (const struct descriptor* other = descriptors.descriptor; other < one; other++) {
    const bool same =
        other->kind == HF_KIND_EVENTFD && other->eventfd_id == one->eventfd_id && other->entry < 0;
    if (same && one->eventfd_id >= 0) return sys(SYS_dup3, other->fd, one->fd, cloexec);
  }
  const bool fits = one->count <= UINT32_MAX;
  const int flags = cloexec | nonblock | (one->semaphore ? EFD_SEMAPHORE : 0);
  const long result = move_to(sys(SYS_eventfd2, fits ? one->count : 0, flags), one);
  if (result < 0 || fits) return result;
  return sys(SYS_write, one->fd, &one->count, sizeof one->count);
}

static long replace(const struct descriptor* one, const struct fd_sources* sources) {
  const uint32_t how = sources->how[one->entry];
  if (how == HF_KEEP) return 0;
  if (how == HF_CLOSE) return sys(SYS_close, one->fd);
  const long result = sys(SYS_dup3, sources->child_end[one->entry], one->fd, one->cloexec ? O_CLOEXEC : 0);
  // Whatever was there before: a tap may take the place of what stood for none.
  if (result >= 0 && how == HF_GIVEN) tap_settle(one->fd);
  // Pairs and pipes are made non-blocking, as nearly everything here was; only what differs costs a call.
  const bool made = how == HF_PAIR_STREAM || how == HF_PAIR_SEQPACKET || how == HF_PIPE_WRITE;
  const bool right = how == HF_NULL || (made && (one->flags & O_NONBLOCK) != 0);
  if (result < 0 || right) return result;
  return sys(SYS_fcntl, one->fd, F_SETFL, one->flags & (O_NONBLOCK | O_APPEND));
}

bool fds_take_control(const struct fd_sources* sources) {
  for (uint32_t i = 0; i < descriptors.count; i++) {
    const struct descriptor* one = &descriptors.descriptor[i];
    if (one->fd != control.fd || one->entry < 0) continue;
    return sys(SYS_dup3, sources->child_end[one->entry], one->fd, O_CLOEXEC) >= 0;
  }
  return false;
}

bool fds_apply(const struct fd_sources* sources, struct refusal* why) {
  for (uint32_t i = 0; i < descriptors.count; i++) {
    const struct descriptor* one = &descriptors.descriptor[i];
    long result = 0;
    if (one->fd == control.fd) continue;  // fds_take_control
    if (one->entry >= 0)
      result = replace(one, sources);
    else if (one->disposition == HF_RECREATE)
      result = recreate(one);
    if (result >= 0) continue;
    *why = (struct refusal){HF_SYSCALL, (int)-result, "child: cannot put a descriptor in its place"};
    return false;
  }
  // Every source, given ones too: they are the child's copies.
  for (uint32_t i = 0; i < sources->count; i++) {
    if (sources->child_end[i] >= 0) sys(SYS_close, sources->child_end[i]);
    if (sources->engine_end[i] >= 0) sys(SYS_close, sources->engine_end[i]);
  }
  return true;
}
