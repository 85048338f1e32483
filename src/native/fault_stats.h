#pragma once

#include <atomic>
#include <cstdint>
#include <span>

namespace forkd {

// Counters that JavaScript reads while faults are served. Their order is that of src/contract/fault-stats.ts,
// where they are explained.
class FaultStats {
 public:
  enum Counter {
    kFaults,
    kFilled,
    kReadBytes,
    kZeroed,
    kWoken,
    kWaited,
    kTakenOver,
    kForks,
    kChanges,
    kFailed,
    kAnswered,
    kCounters,
  };

  FaultStats() = default;
  // Shorter than kCounters: nothing is counted. What is longer is a ring of latencies.
  explicit FaultStats(std::span<int64_t> numbers)
      : numbers_(numbers.size() < kCounters ? std::span<int64_t>() : numbers) {}

  void Add(Counter counter, int64_t n) {
    if (!numbers_.empty()) {
      std::atomic_ref<int64_t>(numbers_[counter]).fetch_add(n, std::memory_order_relaxed);
    }
  }
  // A fault that was answered, this long after it was read.
  void Answered(int64_t ns) {
    if (numbers_.empty()) return;
    int64_t number = std::atomic_ref<int64_t>(numbers_[kAnswered]).fetch_add(1, std::memory_order_relaxed);
    std::span<int64_t> ring = numbers_.subspan(kCounters);
    if (ring.empty()) return;
    size_t slot = static_cast<size_t>(number) % ring.size();
    std::atomic_ref<int64_t>(ring[slot]).store(ns, std::memory_order_relaxed);
  }

 private:
  std::span<int64_t> numbers_;
};

}  // namespace forkd
