#include "frames.h"

#include <fcntl.h>

#include <deque>

#include "native_thread.h"

namespace forkd {

namespace {

// Less makes many small extents, more leaves the disk idle.
constexpr uint64_t kWritebackBytes = 8 * 1024 * 1024;

}  // namespace

void Writeback::Wrote(int fd, uint64_t offset, uint64_t bytes) {
  if (fd != fd_ || offset != end_) {
    Begin();
    fd_ = fd;
    begin_ = offset;
  }
  end_ = offset + bytes;
  if (end_ - begin_ >= kWritebackBytes) Begin();
}

void Writeback::Begin() {
  // Only a beginning: what fails here fails at the fsync. It is refused for a socket.
  if (end_ > begin_) {
    sync_file_range(fd_, static_cast<off64_t>(begin_), static_cast<off64_t>(end_ - begin_),
                    SYNC_FILE_RANGE_WRITE);
  }
  begin_ = end_;
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
