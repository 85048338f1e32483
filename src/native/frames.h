#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "error.h"
#include "native_thread.h"

// A stream as zstd frames that know nothing of each other, as packs have it: what its writer and its reader
// share.
namespace forkd {

// Of a frame, before and after compression: far more than packs have (contract/limits.ts).
constexpr uint64_t kFrameBytesMax = 16 * 1024 * 1024;
constexpr int kFrameThreadsMax = 64;

// Why frames could not be written or read.
struct FrameError {
  SysError sys;
  const char* what = nullptr;  // static text

  explicit operator bool() const { return sys || what; }
};

// Shared with JavaScript: bytes of content that are done, and whether to stop.
class FrameProgress {
 public:
  static constexpr size_t kSlots = 2;

  explicit FrameProgress(std::span<int64_t> slots) : slots_(slots) {}

  void Add(uint64_t bytes) const {
    std::atomic_ref<int64_t>(slots_[0]).fetch_add(static_cast<int64_t>(bytes), std::memory_order_relaxed);
  }
  void Stop() const { std::atomic_ref<int64_t>(slots_[1]).store(1, std::memory_order_relaxed); }
  bool stopped() const { return std::atomic_ref<int64_t>(slots_[1]).load(std::memory_order_relaxed) != 0; }

 private:
  std::span<int64_t> slots_;
};

// What was just written, by any thread: the disk begins with it while the processors go on, and its cache is
// flushed meanwhile, so that little is left to wait for at the end. Files are written from front to back,
// more or less; small pieces elsewhere are left for later, when they may lie together.
class Writeback {
 public:
  // `folder`: a directory of the same file system, or -1: then nothing is flushed.
  explicit Writeback(int folder = -1) : folder_(folder) {}
  ~Writeback() { (void)Stop(); }
  void Wrote(int fd, uint64_t offset, uint64_t bytes);
  // Here and there, before the file's turn.
  void WroteAhead(int fd, uint64_t offset, uint64_t bytes);
  // What has not been begun is left to an fsync. From here on no file is touched. Returns what a flush met.
  SysError Stop();

 private:
  struct Part {
    int fd;
    uint64_t begin;
    uint64_t end;
    uint64_t bytes;  // written between these
  };

  void Queue(const Part& part);
  void Begin();
  void Flush();

  const int folder_;
  std::mutex mutex_;
  std::condition_variable filled_, begun_;
  std::vector<Part> parts_;  // one for each file
  std::deque<Part> full_;
  bool has_begun_ = false;  // since the last flush
  SysError error_;
  // The disk's queue may be full, and nobody else is to wait for that; nor for its cache.
  NativeThread begins_, flushes_;
  bool is_started_ = false;
  bool is_stopped_ = false;
};

// Runs `work` in so many threads, this one among them; with its number. What cannot be started is done
// without.
void InThreads(unsigned threads, const std::function<void(unsigned)>& work);

}  // namespace forkd
