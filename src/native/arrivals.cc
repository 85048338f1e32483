#include "arrivals.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <climits>
#include <string>

namespace forkd {

namespace {

// Shared between processes, so not FUTEX_PRIVATE.
void FutexWake(uint32_t* word) {
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void FutexWait(const uint32_t* word, uint32_t value, int64_t timeout_ns) {
  timespec timeout = {timeout_ns / 1'000'000'000, timeout_ns % 1'000'000'000};
  syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, nullptr, 0);
}

// A VMM that cut the file short would end us with SIGBUS.
SysError MakeArrivalMemory(const char* name, size_t bytes, UniqueFd* fd, void** mapping) {
  *fd = UniqueFd(memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!fd->Valid()) return SysError::Last("memfd_create");
  if (ftruncate(fd->Get(), static_cast<off_t>(bytes)) != 0) return SysError::Last("ftruncate");
  if (fcntl(fd->Get(), F_ADD_SEALS, F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) != 0) {
    return SysError::Last("fcntl");
  }
  *mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd->Get(), 0);
  if (*mapping == MAP_FAILED) {
    *mapping = nullptr;
    return SysError::Last("mmap");
  }
  return {};
}

constexpr int64_t kArrivalLookNs = 50'000'000;

}  // namespace

SysError Arrivals::Open(uint32_t items, uint32_t first_block, int disk_fd,
                        std::shared_ptr<Arrivals>* arrivals) {
  std::shared_ptr<Arrivals> made(new Arrivals);
  made->states_bytes_ = sizeof(arrival_states) + size_t{items} * sizeof(uint32_t);
  made->asks_bytes_ = sizeof(arrival_asks) + size_t{items} * sizeof(uint32_t);
  void *states, *asks;
  SysError error = MakeArrivalMemory("forkd:arrivals", made->states_bytes_, &made->states_fd_, &states);
  if (error) return error;
  made->states_ = static_cast<arrival_states*>(states);
  error = MakeArrivalMemory("forkd:asks", made->asks_bytes_, &made->asks_fd_, &asks);
  if (error) return error;
  made->asks_ = static_cast<arrival_asks*>(asks);
  std::string path = "/proc/self/fd/" + std::to_string(made->states_fd_.Get());
  made->read_only_ = UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!made->read_only_.Valid()) return SysError::Last("open");
  if (disk_fd >= 0) {
    struct stat status;
    if (fstat(disk_fd, &status) != 0) return SysError::Last("fstat");
    made->states_->disk_device = status.st_dev;
    made->states_->disk_inode = status.st_ino;
  }
  made->states_->items = items;
  made->states_->first_block = first_block;
  made->items_ = items;
  *arrivals = std::move(made);
  return {};
}

Arrivals::~Arrivals() {
  if (states_) munmap(states_, states_bytes_);
  if (asks_) munmap(asks_, asks_bytes_);
}

void Arrivals::Settle(uint32_t item, uint32_t state) {
  std::atomic_ref<uint32_t>(states_->state[item]).store(state, std::memory_order_release);
  std::atomic_ref<uint32_t>(asks_->asked[item]).store(ARRIVAL_UNASKED, std::memory_order_release);
  FutexWake(&states_->state[item]);
}

void Arrivals::SetWhole() {
  std::atomic_ref<uint32_t>(states_->whole).store(1, std::memory_order_release);
  for (uint32_t item = 0; item < items_; item++) Settle(item, ARRIVAL_HERE);
}

void Arrivals::Ask(uint32_t item) {
  uint32_t unasked = ARRIVAL_UNASKED;
  std::atomic_ref<uint32_t> asked(asks_->asked[item]);
  if (!asked.compare_exchange_strong(unasked, ARRIVAL_ASKED, std::memory_order_acq_rel)) return;
  std::atomic_ref<uint32_t>(asks_->bell).fetch_add(1, std::memory_order_acq_rel);
  FutexWake(&asks_->bell);
}

void Arrivals::WaitBriefly(uint32_t item) const {
  FutexWait(&states_->state[item], ARRIVAL_AWAY, kArrivalLookNs);
}

std::vector<uint32_t> Arrivals::TakeAsked() {
  std::vector<uint32_t> asked;
  while (!closed_) {
    uint32_t bell = std::atomic_ref<uint32_t>(asks_->bell).load(std::memory_order_acquire);
    if (bell == heard_) {
      FutexWait(&asks_->bell, bell, kArrivalLookNs * 20);
      continue;
    }
    heard_ = bell;
    for (uint32_t item = 0; item < items_; item++) {
      uint32_t was = ARRIVAL_ASKED;
      std::atomic_ref<uint32_t> ask(asks_->asked[item]);
      if (!ask.compare_exchange_strong(was, ARRIVAL_HEARD, std::memory_order_acq_rel)) continue;
      if (State(item) == ARRIVAL_AWAY) asked.push_back(item);
    }
    if (!asked.empty()) return asked;
  }
  return {};
}

void Arrivals::Close() {
  closed_ = true;
  std::atomic_ref<uint32_t>(asks_->bell).fetch_add(1, std::memory_order_acq_rel);
  FutexWake(&asks_->bell);
}

std::vector<uint64_t> Arrivals::TakeVictims() {
  std::vector<uint64_t> victims;
  uint32_t count = std::atomic_ref<uint32_t>(asks_->victims).load(std::memory_order_acquire);
  uint32_t told = told_victims_.exchange(count);
  for (uint32_t i = std::min<uint32_t>(count - told, ARRIVAL_VICTIMS_MAX); i > 0; i--) {
    uint32_t at = (count - i) % ARRIVAL_VICTIMS_MAX;
    victims.push_back(std::atomic_ref<uint64_t>(asks_->victim[at]).load(std::memory_order_acquire));
  }
  return victims;
}

}  // namespace forkd
