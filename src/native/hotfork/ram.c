// Guest memory: QEMU is told that it shares a file, and gets a private mapping of it.
//
// Told so (share=on), it leaves guest memory out of the device state it saves (x-ignore-shared): a copy of a
// running machine can then be written out in milliseconds, and its memory read from outside, only what it has
// changed. Mapped private, what a guest writes is its own process's, which is what a fork copies.
//
// The mapping may also be filled on demand: it is registered with userfaultfd(2), and the descriptor is
// handed to the engine's memory server in the handshake that Firecracker's Uffd backend uses, a JSON list of
// regions with the descriptor beside it.
#include <errno.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hotfork.h"
#include "sys.h"

enum { PAGE_BYTES = 4096 };

static bool has_ram;
static dev_t ram_device;
static ino_t ram_inode;
/** Socket of the memory server until the mapping has been handed over, or -1. */
static int server = -1;

static int number_in(const char* name) {
  const char* text = getenv(name);
  unsetenv(name);
  return text == NULL ? -1 : atoi(text);
}

bool ram_init(void) {
  const int fd = number_in("FORKD_HOTFORK_RAM");
  server = number_in("FORKD_HOTFORK_UFFD");
  struct stat status;
  if (server >= 0) fcntl(server, F_SETFD, FD_CLOEXEC);
  if (fd < 0) return true;
  if (fstat(fd, &status) != 0) return false;
  has_ram = true;
  ram_device = status.st_dev;
  ram_inode = status.st_ino;
  return true;
}

static bool is_ram(int flags, int fd) {
  struct stat status;
  const int type = flags & MAP_TYPE;
  if (!has_ram || fd < 0 || (type != MAP_SHARED && type != MAP_SHARED_VALIDATE)) return false;
  return sys(SYS_fstat, fd, &status) == 0 && status.st_dev == ram_device && status.st_ino == ram_inode;
}

/**
 * A descriptor that tells of pages which are not in the file yet. FORK: copies of this process are followed.
 * REMOVE, REMAP, UNMAP: the server's picture of the mapping stays right. THREAD_ID: it can say who waits.
 */
static int make_userfault(uintptr_t start, size_t bytes) {
  const int fd = (int)sys(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return fd;
  struct uffdio_api api = {.api = UFFD_API,
                           .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                       UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_EVENT_UNMAP |
                                       UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_THREAD_ID};
  struct uffdio_register range = {.range = {.start = start, .len = bytes},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  long result = sys(SYS_ioctl, fd, UFFDIO_API, &api);
  if (result == 0) result = sys(SYS_ioctl, fd, UFFDIO_REGISTER, &range);
  if (result == 0) return fd;
  sys(SYS_close, fd);
  return (int)result;
}

static bool hand_over(int fd, uintptr_t start, size_t bytes, off_t offset) {
  char text[192];
  // Firecracker's key for the page size says KiB and holds bytes.
  const int length = snprintf(
      text, sizeof text, "[{\"base_host_virt_addr\":%lu,\"size\":%zu,\"offset\":%ld,\"page_size_kib\":%d}]",
      start, bytes, (long)offset, PAGE_BYTES);
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } rights;
  struct iovec vector = {.iov_base = text, .iov_len = (size_t)length};
  struct msghdr message = {.msg_iov = &vector,
                           .msg_iovlen = 1,
                           .msg_control = rights.bytes,
                           .msg_controllen = sizeof rights.bytes};
  struct cmsghdr* one = CMSG_FIRSTHDR(&message);
  one->cmsg_level = SOL_SOCKET;
  one->cmsg_type = SCM_RIGHTS;
  one->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(one), &fd, sizeof fd);
  long sent;
  while ((sent = sys(SYS_sendmsg, server, &message, MSG_NOSIGNAL)) == -EINTR)
    ;
  return sent == length;
}

/** Memory that nobody fills would read as zeros: better no machine at all. */
static void fill_on_demand(uintptr_t start, size_t bytes, off_t offset) {
  const int fd = make_userfault(start, bytes);
  if (fd < 0 || !hand_over(fd, start, bytes, offset)) {
    fprintf(stderr, "forkd hotfork: guest memory cannot be filled on demand: %s\n",
            fd < 0 ? strerror(-fd) : "the memory server is gone");
    _exit(CHILD_FAILED_STATUS);
  }
  // The server's alone from here on: no copy of this process has it, and none needs it.
  sys(SYS_close, fd);
  sys(SYS_close, server);
  server = -1;
}

static void* map(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  const bool ram = is_ram(flags, fd);
  if (ram) flags = (flags & ~MAP_TYPE) | MAP_PRIVATE;
  const long result = sys(SYS_mmap, address, bytes, protection, flags, fd, offset);
  if (result < 0 && result > -PAGE_BYTES) {
    errno = (int)-result;
    return MAP_FAILED;
  }
  if (ram && server >= 0) fill_on_demand((uintptr_t)result, bytes, offset);
  return (void*)result;
}

// One function under two names: off_t has 64 bits either way here. The names are given to the assembler,
// because the headers rename one to the other.
HF_EXPORT void* map_small(void* address, size_t bytes, int protection, int flags, int fd,
                          off_t offset) __asm__("mmap");
HF_EXPORT void* map_large(void* address, size_t bytes, int protection, int flags, int fd,
                          off_t offset) __asm__("mmap64");

void* map_small(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  return map(address, bytes, protection, flags, fd, offset);
}

void* map_large(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  return map(address, bytes, protection, flags, fd, offset);
}
