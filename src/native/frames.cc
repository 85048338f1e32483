#include "frames.h"

#include <fcntl.h>

#include <algorithm>
#include <deque>

#include "native_thread.h"

namespace forkd {

namespace {

// More leaves the disk idle.
constexpr uint64_t kWritebackBytes = 8 * 1024 * 1024;
constexpr uint64_t kSmallBytes = 256 * 1024;

}  // namespace

void Writeback::Wrote(int fd, uint64_t offset, uint64_t bytes) {
  if (bytes < kSmallBytes) return;
  Part full = {fd, 0, 0};
  {
    std::lock_guard lock(mutex_);
    auto part = std::find_if(parts_.begin(), parts_.end(), [fd](const Part& one) { return one.fd == fd; });
    if (part == parts_.end()) part = parts_.insert(part, {fd, offset, offset});
    part->begin = std::min(part->begin, offset);
    part->end = std::max(part->end, offset + bytes);
    if (part->end - part->begin < kWritebackBytes) return;
    full = *part;
    part->begin = part->end;
  }
  // Only a beginning: what fails here fails at the fsync. It is refused for a socket.
  sync_file_range(fd, static_cast<off64_t>(full.begin), static_cast<off64_t>(full.end - full.begin),
                  SYNC_FILE_RANGE_WRITE);
}

void InThreads(unsigned threads, const std::function<void(unsigned)>& work) {
  std::deque<NativeThread> others(threads - 1);
  unsigned number = 1;
  for (NativeThread& other : others) {
    unsigned own = number++;
    (void)other.Start([&work, own] { work(own); });
  }
  work(0);
}

}  // namespace forkd
