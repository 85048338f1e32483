#include "instant_copy.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "io.h"
#include "native_thread.h"
#include "uffd_events.h"

namespace forkd {

namespace {

constexpr uint64_t kUnitBytes = 64 << 10;
// Units that a copier claims together. More would make a fault in one of them wait longer.
constexpr size_t kUnitsAtOnce = 4;
constexpr timespec kSoon = {0, 100'000};
constexpr int kSoonMs = 1;

SysError ReadProcess(pid_t pid, uint64_t address, uint8_t* into, size_t bytes) {
  iovec here = {into, bytes}, there = {reinterpret_cast<void*>(address), bytes};
  ssize_t got = process_vm_readv(pid, &here, 1, &there, 1, 0);
  if (got < 0) return SysError::Last("process_vm_readv");
  // It stops at the first page that cannot be read.
  return static_cast<size_t>(got) < bytes ? SysError{"process_vm_readv", EFAULT} : SysError();
}

}  // namespace

SysError InstantCopy::Make(Uffd uffd, pid_t pid, const std::vector<Regions::Region>& runs,
                           uint64_t image_bytes, std::shared_ptr<InstantCopy>* made) {
  std::shared_ptr<InstantCopy> copy(new InstantCopy);
  copy->done_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!copy->done_.Valid()) return SysError::Last("eventfd");
  copy->uffd_ = std::move(uffd);
  copy->pid_ = pid;
  copy->image_bytes_ = image_bytes;
  copy->runs_ = runs;
  std::sort(copy->runs_.begin(), copy->runs_.end(),
            [](const Regions::Region& a, const Regions::Region& b) { return a.base < b.base; });
  for (const Regions::Region& run : copy->runs_) {
    // Units end where chunks of the image end.
    for (uint64_t done = 0; done < run.bytes;) {
      uint64_t offset = run.offset + done;
      uint64_t bytes = std::min(run.bytes - done, kUnitBytes - offset % kUnitBytes);
      copy->units_.push_back({run.base + done, static_cast<uint32_t>(bytes), offset});
      done += bytes;
    }
    copy->pages_ += run.bytes / kPageBytes;
  }
  copy->states_ = std::make_unique<std::atomic<uint8_t>[]>(copy->units_.size());
  copy->taken_in_ = std::make_unique<std::atomic<uint32_t>[]>(copy->units_.size());
  *made = std::move(copy);
  return {};
}

InstantCopy::~InstantCopy() {
  ReleaseAll();
}

SysError InstantCopy::Arm() {
  armed_ = true;
  for (const Regions::Region& run : runs_) {
    if (SysError error = uffd_.Protect(run.base, run.bytes)) {
      ReleaseAll();
      return error;
    }
  }
  return {};
}

SysError InstantCopy::Copy(int target, unsigned copiers) {
  if (!armed_ || target_ >= 0) return {"instant copy", EINVAL};
  target_ = target;
  if (ftruncate(target, 0) != 0 || ftruncate(target, static_cast<off_t>(image_bytes_)) != 0) {
    Fail(SysError::Last("ftruncate"));
    return error_;
  }
  NativeThread server;
  if (SysError error = server.Start([this] { Serve(); })) {
    Fail(error);
    return error_;
  }
  {
    std::vector<NativeThread> others(copiers - 1);
    // With fewer of them it only takes longer.
    for (NativeThread& other : others) (void)other.Start([this] { Run(); });
    Run();
  }
  eventfd_write(done_.Get(), 1);
  server.Join();
  if (!failed_) armed_ = false;  // each unit was released when it was taken
  // Of a process that ended in the middle any call may have failed, in any way.
  if (failed_ && !units_.empty() && !uffd_.Alive(units_.front().address)) error_.number = ESRCH;
  return error_;
}

bool InstantCopy::Claim(size_t unit) {
  uint8_t expected = kWaiting;
  return states_[unit].compare_exchange_strong(expected, kCopying, std::memory_order_acquire);
}

const InstantCopy::Unit* InstantCopy::Find(uint64_t address) const {
  auto next = std::upper_bound(units_.begin(), units_.end(), address,
                               [](uint64_t a, const Unit& unit) { return a < unit.address; });
  if (next == units_.begin()) return nullptr;
  const Unit& unit = *std::prev(next);
  return address - unit.address < unit.bytes ? &unit : nullptr;
}

void InstantCopy::Run() {
  std::vector<uint8_t> buffer(kUnitsAtOnce * kUnitBytes);
  while (!failed_) {
    size_t at = next_.fetch_add(kUnitsAtOnce), end = std::min(at + kUnitsAtOnce, units_.size());
    if (at >= units_.size()) return;
    while (at < end) {
      if (!Claim(at)) {
        at++;
        continue;
      }
      size_t count = 1;
      auto follows = [&](size_t unit) {
        const Unit& before = units_[unit - 1];
        return before.address + before.bytes == units_[unit].address &&
               before.offset + before.bytes == units_[unit].offset;
      };
      while (at + count < end && follows(at + count) && Claim(at + count)) count++;
      if (!Take(at, count, &buffer)) return;
      for (size_t unit = at; unit < at + count; unit++) by_copiers_ += units_[unit].bytes / kPageBytes;
      const Unit& last = units_[at + count - 1];
      Range taken = {units_[at].address, last.address + last.bytes};
      while (!failed_ && !Release(taken)) nanosleep(&kSoon, nullptr);
      at += count;
    }
  }
}

bool InstantCopy::Take(size_t first, size_t count, std::vector<uint8_t>* buffer) {
  uint64_t bytes = 0;
  for (size_t unit = first; unit < first + count; unit++) bytes += units_[unit].bytes;
  SysError error = ReadProcess(pid_, units_[first].address, buffer->data(), bytes);
  uint64_t done = 0;
  for (size_t unit = first; !error && unit < first + count; unit++) {
    const uint8_t* from = buffer->data() + done;
    if (!IsZero(from, units_[unit].bytes)) {
      error = WriteAt(target_, from, units_[unit].bytes, units_[unit].offset);
    }
    done += units_[unit].bytes;
  }
  if (error) {
    Fail(error);
    return false;
  }
  uint32_t round = round_;
  for (size_t unit = first; unit < first + count; unit++) {
    taken_in_[unit].store(round, std::memory_order_relaxed);
    states_[unit].store(kTaken, std::memory_order_release);
  }
  return true;
}

void InstantCopy::Serve() {
  pollfd watched[2] = {{uffd_.Get(), POLLIN, 0}, {done_.Get(), POLLIN, 0}};
  std::vector<Range> owed;  // that could not be released yet
  while (!failed_) {
    if (poll(watched, 2, owed.empty() ? -1 : kSoonMs) < 0) {
      if (errno == EINTR) continue;
      return Fail(SysError::Last("poll"));
    }
    if (watched[0].revents & (POLLERR | POLLHUP | POLLNVAL)) return Fail({"poll userfaultfd", EIO});
    uint32_t round = ++round_;
    std::vector<UffdEvent> events;
    if (SysError error = ReadUffdEvents(uffd_.Get(), &events)) return Fail(error);
    std::erase_if(owed, [this](Range range) { return Release(range); });
    for (UffdEvent& event : events) {
      switch (event.kind) {
        case UffdEvent::kFault:
          Answer(event.address, &owed);
          break;
        case UffdEvent::kFork:
          break;  // closing its userfaultfd takes the protection from the child
        default:
          if (Untaken({event.start, event.end}, round)) return Fail({"userfaultfd event", EBUSY});
      }
    }
    // Faults that were there before the end was told are answered by now.
    if (watched[1].revents && owed.empty()) return;
  }
}

void InstantCopy::Answer(uint64_t address, std::vector<Range>* owed) {
  const Unit* unit = Find(address);
  Range range =
      unit ? Range{unit->address, unit->address + unit->bytes} : Range{address, address + kPageBytes};
  if (unit) {
    size_t index = static_cast<size_t>(unit - units_.data());
    if (Claim(index)) {
      std::vector<uint8_t> buffer(unit->bytes);
      if (!Take(index, 1, &buffer)) return;
      by_fault_ += unit->bytes / kPageBytes;
    } else if (states_[index].load(std::memory_order_acquire) == kCopying) {
      return;  // whoever copies it releases it, and wakes
    }
  }
  if (!Release(range)) owed->push_back(range);
}

bool InstantCopy::Untaken(Range addresses, uint32_t round) const {
  return std::any_of(units_.begin(), units_.end(), [&](const Unit& unit) {
    size_t index = static_cast<size_t>(&unit - units_.data());
    return unit.address < addresses.end && addresses.begin < unit.address + unit.bytes &&
           (states_[index].load(std::memory_order_acquire) != kTaken ||
            taken_in_[index].load(std::memory_order_relaxed) >= round);
  });
}

bool InstantCopy::Release(Range addresses) {
  SysError error = uffd_.Unprotect(addresses.begin, addresses.end - addresses.begin);
  if (error.number == EAGAIN) return false;
  // ENOENT: it was taken, and is unmapped since.
  if (error && error.number != ENOENT) Fail(error);
  return true;
}

void InstantCopy::ReleaseAll() {
  if (!armed_) return;
  armed_ = false;
  for (const Regions::Region& run : runs_) {
    while (uffd_.Unprotect(run.base, run.bytes).number == EAGAIN) {
      // Nobody else may be reading its events, which hold up the address space.
      std::vector<UffdEvent> events;
      (void)ReadUffdEvents(uffd_.Get(), &events);
      nanosleep(&kSoon, nullptr);
    }
  }
}

void InstantCopy::Fail(SysError error) {
  std::lock_guard lock(mutex_);
  if (!error_) error_ = error;
  failed_ = true;
  ReleaseAll();
  if (done_.Valid()) eventfd_write(done_.Get(), 1);
}

}  // namespace forkd
