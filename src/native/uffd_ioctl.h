#pragma once

#include <linux/userfaultfd.h>

#include <cstdint>

#include "error.h"

// Newer than the headers of Debian 12; the numbers are the kernel's.
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFDIO_POISON
#define UFFD_FEATURE_POISON (1 << 14)
struct uffdio_poison {
  struct uffdio_range range;
  __u64 mode;
  __s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif

// The system calls of userfaultfd(2), one function each and nothing else: what they mean is said by uffd.h.
// `progress` is the bytes that were done, also when the call failed in the middle.
namespace forkd::uffd_ioctl {

// userfaultfd(2), close-on-exec and non-blocking. Where the call is refused, /dev/userfaultfd.
SysError Open(int* fd);
// UFFDIO_API. `features`: asked for, then what the kernel has.
SysError Api(int fd, uint64_t* features);
SysError Register(int fd, uint64_t start, uint64_t bytes, uint64_t mode);
SysError Unregister(int fd, uint64_t start, uint64_t bytes);
SysError Wake(int fd, uint64_t start, uint64_t bytes);
SysError Copy(int fd, uint64_t to, const uint8_t* from, uint64_t bytes, uint64_t mode, uint64_t* progress);
SysError Zeropage(int fd, uint64_t start, uint64_t bytes, uint64_t mode, uint64_t* progress);
SysError WriteProtect(int fd, uint64_t start, uint64_t bytes, uint64_t mode);
// Linux 6.6. Whoever touches the range gets SIGBUS.
SysError Poison(int fd, uint64_t start, uint64_t bytes, uint64_t* progress);

}  // namespace forkd::uffd_ioctl
