#include "frames.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

namespace forkd {

namespace {

// More leaves the disk idle.
constexpr uint64_t kWritebackBytes = 4 * 1024 * 1024;
// A file goes on here, or with something of this size.
constexpr uint64_t kNearBytes = 1024 * 1024;
constexpr uint64_t kLargeBytes = 256 * 1024;

}  // namespace

void Writeback::Wrote(int fd, uint64_t offset, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  auto part = std::find_if(parts_.begin(), parts_.end(), [fd](const Part& one) { return one.fd == fd; });
  const bool is_near =
      part != parts_.end() && offset <= part->end + kNearBytes && offset + bytes + kNearBytes >= part->begin;
  if (!is_near && bytes < kLargeBytes) return;
  if (part == parts_.end()) part = parts_.insert(part, {fd, offset, offset, 0});
  part->begin = std::min(part->begin, offset);
  part->end = std::max(part->end, offset + bytes);
  part->bytes += bytes;
  if (part->bytes < kWritebackBytes) return;
  Queue(*part);
  *part = {fd, part->end, part->end, 0};
}

void Writeback::WroteAhead(int fd, uint64_t offset, uint64_t bytes) {
  if (bytes < kLargeBytes) return;
  std::lock_guard lock(mutex_);
  Queue({fd, offset, offset + bytes, bytes});
}

void Writeback::Queue(const Part& part) {
  full_.push_back(part);
  // Without threads it is left to the fsync.
  if (!is_started_) {
    (void)begins_.Start([this] { Begin(); });
    if (folder_ >= 0) (void)flushes_.Start([this] { Flush(); });
  }
  is_started_ = true;
  filled_.notify_one();
}

void Writeback::Begin() {
  std::unique_lock lock(mutex_);
  for (;;) {
    filled_.wait(lock, [this] { return is_stopped_ || !full_.empty(); });
    if (is_stopped_) return;
    const Part part = full_.front();
    full_.pop_front();
    lock.unlock();
    // Only a beginning: what fails here fails at the fsync.
    sync_file_range(part.fd, static_cast<off64_t>(part.begin), static_cast<off64_t>(part.end - part.begin),
                    SYNC_FILE_RANGE_WRITE);
    lock.lock();
    has_begun_ = true;
    begun_.notify_one();
  }
}

void Writeback::Flush() {
  std::unique_lock lock(mutex_);
  for (;;) {
    begun_.wait(lock, [this] { return is_stopped_ || has_begun_; });
    if (is_stopped_) return;
    has_begun_ = false;
    lock.unlock();
    // Of a directory that stays as it is: on ext4 that flushes the disk's cache, and nothing else. Of the
    // files it would commit the journal each time, and whoever writes would wait for that.
    SysError error;
    if (fdatasync(folder_) != 0) error = SysError::Last("fdatasync");
    lock.lock();
    // The sync at the end may find a disk that is well again.
    if (error && !error_) error_ = error;
  }
}

SysError Writeback::Stop() {
  {
    std::lock_guard lock(mutex_);
    is_stopped_ = true;
    filled_.notify_one();
    begun_.notify_one();
  }
  begins_.Join();
  flushes_.Join();
  return error_;
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
