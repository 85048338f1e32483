#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "image_memory.h"
#include "regions.h"
#include "uffd.h"
#include "uffd_events.h"

namespace forkd {

// A fault that was read and is not answered yet.
struct PendingFault {
  std::shared_ptr<class FaultContext> context;
  uint64_t address = 0;
  int thread = 0;
  int64_t read_ns = 0;        // CLOCK_MONOTONIC
  int64_t retry_ns = 0;       // not before
  int64_t waiting_since = 0;  // for a chunk that another thread is filling; 0 when it is not
};

// One address space that is served: its userfaultfd, and what it shows where. A hot fork makes a new one.
//
// `mutex_` covers reading messages with acting on them, and every placing of pages. So pages are never placed
// by what was true before a message that has been read: the kernel lets the sender of REMOVE go on (and drop
// the pages) when the message is read, and refuses to place any between its sending and that.
class FaultContext : public std::enable_shared_from_this<FaultContext> {
 public:
  // `pidfd` (may be invalid): the process, if the caller knows it. `anonymous`: the memory is the process's
  // own, and what it drops comes back as zeros, where a mapping of the memfd comes back as the image.
  FaultContext(Uffd uffd, Regions regions, UniqueFd pidfd, bool anonymous, RangeSet removed = {})
      : uffd_(std::move(uffd)),
        pidfd_(std::move(pidfd)),
        anonymous_(anonymous),
        regions_(std::move(regions)),
        removed_(std::move(removed)) {}

  struct Drained {
    std::vector<PendingFault> faults;
    std::vector<std::shared_ptr<FaultContext>> children;
    uint64_t changes = 0;  // REMOVE, UNMAP, REMAP
  };
  SysError Drain(Drained* drained);

  // The byte of the image that the address shows; false when it shows none.
  bool ImageOffset(uint64_t address, uint64_t* image_offset) const;

  // Each answers all faults that wait for the range, unless it returns kBusy or kFailed.
  Placed WakeChunk(Range image);
  Placed WakePage(uint64_t address);
  // Pages of zeros, where there are none yet. In a private mapping of a memfd they are the kernel's one zero
  // page: neither the child nor the memfd pays for them.
  Placed PlaceZeros(Range image, SysError* error);
  // Copies of an image's chunk (the whole of `image`), but zeros where the process has dropped the image's
  // pages.
  Placed PlaceCopy(Range image, const uint8_t* bytes, SysError* error);
  // Whoever touches these pages gets SIGBUS.
  Placed PlacePoison(Range image, SysError* error);
  // Has the process dropped the image's content here (anonymous memory only)?
  bool Removed(uint64_t address) const;
  // Zeros for what was dropped of `addresses`.
  Placed PlaceRemoved(Range addresses, SysError* error);

  bool Alive() const;
  // Counts faults at addresses that show nothing; the number so far.
  int Stray();

  const Uffd& uffd() const { return uffd_; }
  const UniqueFd& pidfd() const { return pidfd_; }
  // Set by whoever serves the set.
  uint64_t id = 0;
  // Of the process, by its inode; its copies are in the same. 0 when it is not known.
  ino_t pid_namespace = 0;

 private:
  template <typename Place>
  Placed ForViews(Range image, Place place);

  const Uffd uffd_;
  const UniqueFd pidfd_;
  const bool anonymous_;
  mutable std::mutex mutex_;
  Regions regions_;
  RangeSet removed_;
  int strays_ = 0;
};

int64_t MonotonicNs();

}  // namespace forkd
