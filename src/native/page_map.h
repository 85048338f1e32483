#pragma once

#include <atomic>
#include <cstdint>
#include <span>

// The moves of the page map. What the states mean, and who may change them, is in src/contract/page-map.ts.
namespace forkd {

constexpr int32_t kAbsent = 0;
constexpr int32_t kFilling = 1;
constexpr int32_t kPresent = 2;

using PageMap = std::span<int32_t>;

inline bool Move(int32_t& state, int32_t from, int32_t to) {
  // Release: whoever reads "present" also sees the bytes that were written before it.
  return std::atomic_ref<int32_t>(state).compare_exchange_strong(from, to, std::memory_order_acq_rel,
                                                                 std::memory_order_acquire);
}

// Holds a chunk that was claimed; gives it back as absent unless it was completed.
class Claim {
 public:
  explicit Claim(int32_t& state) : state_(state), held_(Move(state, kAbsent, kFilling)) {}
  ~Claim() {
    if (held_) Move(state_, kFilling, kAbsent);
  }
  Claim(const Claim&) = delete;
  Claim& operator=(const Claim&) = delete;

  bool Held() const { return held_; }
  void Complete() {
    Move(state_, kFilling, kPresent);
    held_ = false;
  }

 private:
  int32_t& state_;
  bool held_;
};

}  // namespace forkd
