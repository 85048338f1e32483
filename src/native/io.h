#pragma once

#include <cstddef>
#include <cstdint>

#include "error.h"

// Positioned reads and writes that finish what they start, and the questions asked of file contents.
// Nothing here knows of JavaScript.
namespace forkd {

// pread(2) until `bytes` are there or the file ends; `done` is what arrived.
SysError ReadAt(int fd, uint8_t* into, size_t bytes, uint64_t offset, size_t* done);

// pwrite(2) until all is written. hugetlb memfds have no write operation: there it goes through mmap(2).
SysError WriteAt(int fd, const uint8_t* from, size_t bytes, uint64_t offset);

// A run of data, [begin, end). Empty at the end of the file when only holes are left.
struct Extent {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// The first data at or after `offset` in a file of `size` bytes: lseek(2) SEEK_DATA and SEEK_HOLE. It moves
// the file position, which the addon never uses. A file system that cannot tell reports everything as data.
SysError NextExtent(int fd, uint64_t offset, uint64_t size, Extent* extent);

// fstat(2); EINVAL when it is not a regular file (a memfd is one), because pipes and sockets would claim size
// 0.
SysError RegularSize(int fd, uint64_t* bytes);

bool IsZero(const uint8_t* data, size_t bytes);

}  // namespace forkd
