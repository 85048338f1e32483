#include "image_memory.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>

namespace forkd {

SysError ImageMemory::Open(int memfd, std::shared_ptr<ImageMemory>* memory) {
  struct stat st;
  if (fstat(memfd, &st) != 0) return SysError::Last("fstat");
  uint64_t bytes = static_cast<uint64_t>(st.st_size);
  // Huge pages would need copies of 2 MiB.
  if (!S_ISREG(st.st_mode) || st.st_blksize != kPageBytes || bytes == 0 || bytes % kPageBytes != 0) {
    return {"fstat", EINVAL};
  }

  std::shared_ptr<ImageMemory> made(new ImageMemory);
  made->fd_ = UniqueFd(fcntl(memfd, F_DUPFD_CLOEXEC, 0));
  if (!made->fd_.Valid()) return SysError::Last("fcntl");
  uint64_t missing;
  if (SysError error = Uffd::Create(UFFD_FEATURE_MISSING_SHMEM, &made->uffd_, &missing)) return error;
  void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
  if (mapping == MAP_FAILED) return SysError::Last("mmap");
  made->mapping_ = static_cast<uint8_t*>(mapping);
  made->bytes_ = bytes;
  made->device_ = st.st_dev;
  made->inode_ = st.st_ino;
  // Its page tables are of no use to a child, and copying them would slow down every fork of ours.
  if (madvise(mapping, bytes, MADV_DONTFORK) != 0) return SysError::Last("madvise");
  madvise(mapping, bytes, MADV_DONTDUMP);
  uint64_t start = reinterpret_cast<uint64_t>(mapping);
  if (SysError error = made->uffd_.Register(start, bytes, UFFDIO_REGISTER_MODE_MISSING)) return error;
  *memory = std::move(made);
  return {};
}

ImageMemory::~ImageMemory() {
  if (mapping_) munmap(mapping_, bytes_);
}

SysError ImageMemory::Put(uint64_t offset, const uint8_t* from, size_t bytes) const {
  uint8_t* to = mapping_ + offset;
  SysError error;
  uint64_t skipped = 0;
  switch (uffd_.Copy(reinterpret_cast<uint64_t>(to), from, bytes, &error, &skipped)) {
    case Placed::kDone:
      break;
    case Placed::kFailed:
      return error;
    default:
      return {"ioctl UFFDIO_COPY", EAGAIN};  // no events are asked for, and this process lives
  }
  if (skipped == 0) return {};
  // Another filler was here, or a process that looked into the memfd without a fault server made pages of
  // zeros. All pages exist now, so looking at them cannot fault.
  for (size_t at = 0; at < bytes; at += kPageBytes) {
    if (memcmp(to + at, from + at, kPageBytes) != 0) memcpy(to + at, from + at, kPageBytes);
  }
  return {};
}

bool ImageMemory::HasPage(uint64_t offset) const {
  // Not mincore(2), which says the same of a hole and of a page that was swapped out.
  off_t data = lseek(fd_.Get(), static_cast<off_t>(offset), SEEK_DATA);
  return data >= 0 && static_cast<uint64_t>(data) == offset;
}

}  // namespace forkd
