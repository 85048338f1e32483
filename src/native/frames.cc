#include "frames.h"

#include <fcntl.h>

#include <algorithm>

namespace forkd {

namespace {

// More leaves the disk idle.
constexpr uint64_t kWritebackBytes = 8 * 1024 * 1024;
constexpr uint64_t kSmallBytes = 256 * 1024;

}  // namespace

void Writeback::Wrote(int fd, uint64_t offset, uint64_t bytes) {
  if (bytes < kSmallBytes) return;
  std::lock_guard lock(mutex_);
  auto part = std::find_if(parts_.begin(), parts_.end(), [fd](const Part& one) { return one.fd == fd; });
  if (part == parts_.end()) part = parts_.insert(part, {fd, offset, offset});
  part->begin = std::min(part->begin, offset);
  part->end = std::max(part->end, offset + bytes);
  if (part->end - part->begin < kWritebackBytes) return;
  full_.push_back(*part);
  part->begin = part->end;
  // Without a thread it is left to the fsync.
  if (!is_started_) (void)thread_.Start([this] { Work(); });
  is_started_ = true;
  moved_.notify_one();
}

void Writeback::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    moved_.wait(lock, [this] { return is_stopped_ || !full_.empty(); });
    if (is_stopped_) return;
    Part part = full_.front();
    full_.pop_front();
    lock.unlock();
    // Only a beginning: what fails here fails at the fsync. It is refused for a socket.
    sync_file_range(part.fd, static_cast<off64_t>(part.begin), static_cast<off64_t>(part.end - part.begin),
                    SYNC_FILE_RANGE_WRITE);
    lock.lock();
  }
}

void Writeback::Stop() {
  {
    std::lock_guard lock(mutex_);
    is_stopped_ = true;
    moved_.notify_one();
  }
  thread_.Join();
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
