#include "io.h"

#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cstring>

namespace forkd {

namespace {

bool IsHugetlb(int fd) {
  struct statfs fs;
  return fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC;
}

// Maps only the huge pages that are written: a shared hugetlb mapping reserves all its pages at once, and an
// image that is filled lazily must not need its whole size up front. Reserved pages cannot fail later with
// SIGBUS.
SysError WriteMapped(int fd, const uint8_t* from, size_t bytes, uint64_t offset) {
  struct stat st;
  if (fstat(fd, &st) != 0) return SysError::Last("fstat");
  // A store past the end would be SIGBUS, where pwrite would have grown the file.
  if (offset + bytes > static_cast<uint64_t>(st.st_size)) return {"pwrite", EINVAL};

  uint64_t page = static_cast<uint64_t>(st.st_blksize);
  uint64_t begin = offset / page * page;
  size_t length = (offset + bytes - begin + page - 1) / page * page;
  void* window = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(begin));
  if (window == MAP_FAILED) return SysError::Last("mmap");
  memcpy(static_cast<uint8_t*>(window) + (offset - begin), from, bytes);
  munmap(window, length);
  return {};
}

}  // namespace

SysError ReadAt(int fd, uint8_t* into, size_t bytes, uint64_t offset, size_t* done) {
  *done = 0;
  while (*done < bytes) {
    ssize_t n = pread(fd, into + *done, bytes - *done, static_cast<off_t>(offset + *done));
    if (n == 0) break;
    if (n > 0) {
      *done += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      return SysError::Last("pread");
    }
  }
  return {};
}

SysError WriteAt(int fd, const uint8_t* from, size_t bytes, uint64_t offset) {
  size_t done = 0;
  while (done < bytes) {
    ssize_t n = pwrite(fd, from + done, bytes - done, static_cast<off_t>(offset + done));
    if (n >= 0) {
      done += static_cast<size_t>(n);
    } else if (errno != EINTR) {
      SysError error = SysError::Last("pwrite");
      if (error.number == EINVAL && IsHugetlb(fd)) {
        return WriteMapped(fd, from + done, bytes - done, offset + done);
      }
      return error;
    }
  }
  return {};
}

SysError NextExtent(int fd, uint64_t offset, uint64_t size, Extent* extent) {
  *extent = {size, size};
  if (offset >= size) return {};
  off_t data = lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return {};
  if (data < 0 && errno == EINVAL) {
    extent->begin = offset;
    return {};
  }
  if (data < 0) return SysError::Last("lseek");
  off_t hole = lseek(fd, data, SEEK_HOLE);
  if (hole < 0) return SysError::Last("lseek");
  *extent = {static_cast<uint64_t>(data), static_cast<uint64_t>(hole)};
  return {};
}

SysError RegularSize(int fd, uint64_t* bytes) {
  struct stat st;
  if (fstat(fd, &st) != 0) return SysError::Last("fstat");
  if (!S_ISREG(st.st_mode)) return {"fstat", EINVAL};
  *bytes = static_cast<uint64_t>(st.st_size);
  return {};
}

bool IsZero(const uint8_t* data, size_t bytes) {
  // When the first 16 bytes are zero and all others equal the byte 16 before them, all are zero.
  // memcmp is the fastest loop at hand, and most pages that are not zero differ at the start.
  static constexpr uint8_t kZeros[16] = {};
  if (bytes <= sizeof kZeros) return memcmp(data, kZeros, bytes) == 0;
  return memcmp(data, kZeros, sizeof kZeros) == 0 &&
         memcmp(data, data + sizeof kZeros, bytes - sizeof kZeros) == 0;
}

}  // namespace forkd
