#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "error.h"
#include "fd.h"

extern "C" {
#include "hotfork/arrivals.h"
}

namespace forkd {

// The engine's side of hotfork/arrivals.h. Any number of threads use it at once.
class Arrivals {
 public:
  // `disk_fd`: whose inode VMMs know the root disk by; -1 for none.
  static SysError Open(uint32_t items, uint32_t first_block, int disk_fd,
                       std::shared_ptr<Arrivals>* arrivals);
  ~Arrivals();
  Arrivals(const Arrivals&) = delete;
  Arrivals& operator=(const Arrivals&) = delete;

  uint32_t items() const { return states_->items; }
  // For a VMM: the states, read-only, and the asks.
  int states_fd() const { return read_only_.Get(); }
  int asks_fd() const { return asks_fd_.Get(); }

  uint32_t State(uint32_t item) const {
    return std::atomic_ref<uint32_t>(states_->state[item]).load(std::memory_order_acquire);
  }
  void Settle(uint32_t item, uint32_t state);
  // All of it is here.
  void SetWhole();
  void Ask(uint32_t item);
  // Returns when the item is no longer away, or after a while.
  void WaitBriefly(uint32_t item) const;

  // Waits until something is asked, and takes it. Empty after Close.
  std::vector<uint32_t> TakeAsked();
  void Close();
  // Processes that ended themselves since the last call.
  std::vector<uint64_t> TakeVictims();

 private:
  Arrivals() = default;

  UniqueFd states_fd_, read_only_, asks_fd_;
  size_t states_bytes_ = 0, asks_bytes_ = 0;
  arrival_states* states_ = nullptr;
  arrival_asks* asks_ = nullptr;
  // Of the VMMs nothing is believed: their number of items may not move ours.
  uint32_t items_ = 0;
  uint32_t heard_ = 0;
  std::atomic<uint32_t> told_victims_ = 0;
  std::atomic<bool> closed_ = false;
};

// What arrivalsOpen gave this handle to; null when there is none (any more).
std::shared_ptr<Arrivals> FindArrivals(int handle);

}  // namespace forkd
