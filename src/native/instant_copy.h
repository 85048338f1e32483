#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "error.h"
#include "fd.h"
#include "regions.h"
#include "uffd.h"

namespace forkd {

// Copies memory as it was at one instant, while its owner goes on writing to it: userfaultfd(2) write
// protection.
//
//   owner     ... stopped |                  runs on; a store to a page that is protected waits
//   here           Arm    | Copy: copiers take unit after unit; the server takes those that somebody waits
//   for
//
// The order is what makes it right. The instant is Arm: it returns when every page is protected, and no fault
// is answered before that. A unit is claimed, read, written to the target, marked taken, and only then
// released, always by the thread that claimed it: nobody writes to a page that is being read.
//
// Whoever wants more of that instant than memory (a VM's device state) keeps the owner stopped from before
// the first of these until Arm has returned. Without a stop the copy is still of one instant for each thread:
// it has all that the thread wrote before the store that first waited, and nothing after.
//
// It sees stores of one address space. What other processes store into a shared mapping goes by unseen; what
// drops or moves pages that are not taken yet ends the copy with EBUSY, where the userfaultfd tells of such
// things (UFFD_FEATURE_EVENT_*).
class InstantCopy {
 public:
  // `uffd`: of the process `pid`, with `runs` registered for write protection. The runs are whole pages, do
  // not overlap, and are the caller's to register and unregister.
  static SysError Make(Uffd uffd, pid_t pid, const std::vector<Regions::Region>& runs, uint64_t image_bytes,
                       std::shared_ptr<InstantCopy>* made);
  // Lets go of what is still protected: nobody waits for ever.
  ~InstantCopy();

  SysError Arm();
  // Once. `target` is emptied, gets the size of the image and each page at its offset; zeros are left as
  // holes. `copiers` threads, this one among them, and one that serves. On failure all is released, and the
  // target is not what it should be. ESRCH: the process has ended.
  SysError Copy(int target, unsigned copiers);

  uint64_t pages() const { return pages_; }
  uint64_t pages_by_fault() const { return by_fault_; }
  uint64_t pages_by_copiers() const { return by_copiers_; }

 private:
  // What is claimed at once by whoever is waited for: 64 KiB, so that a fault is short.
  struct Unit {
    uint64_t address;
    uint32_t bytes;
    uint64_t offset;
  };
  enum State : uint8_t { kWaiting, kCopying, kTaken };

  InstantCopy() = default;
  bool Claim(size_t unit);
  const Unit* Find(uint64_t address) const;
  void Run();
  void Serve();
  void Answer(uint64_t address, std::vector<Range>* owed);
  // Units [first, first + count), which are claimed and lie next to each other.
  bool Take(size_t first, size_t count, std::vector<uint8_t>* buffer);
  // Whether a page of these was not taken for certain before the events of `round` were read.
  bool Untaken(Range addresses, uint32_t round) const;
  // False when it must be tried again: the address space is changing.
  bool Release(Range addresses);
  void ReleaseAll();
  void Fail(SysError error);

  Uffd uffd_;
  pid_t pid_ = 0;
  std::vector<Regions::Region> runs_;
  std::vector<Unit> units_;  // by address
  std::unique_ptr<std::atomic<uint8_t>[]> states_;
  // The server's round in which a unit was taken. Pages are dropped as soon as the event that tells of it is
  // read: what was taken in that round or later may have been zeros by then.
  std::unique_ptr<std::atomic<uint32_t>[]> taken_in_;
  std::atomic<uint32_t> round_{0};
  uint64_t pages_ = 0;
  uint64_t image_bytes_ = 0;
  bool armed_ = false;

  int target_ = -1;
  UniqueFd done_;  // an eventfd that ends the server
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::atomic<uint64_t> by_fault_{0};
  std::atomic<uint64_t> by_copiers_{0};
  std::mutex mutex_;
  SysError error_;  // the first
};

}  // namespace forkd
