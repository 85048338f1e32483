#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "chunk_filler.h"
#include "chunk_reader.h"
#include "fault_context.h"
#include "fault_stats.h"
#include "image_memory.h"
#include "page_map.h"

namespace forkd {

// Answers the faults of all the address spaces that show one image.
//
//   uffd of a VMM --+                                     present? --> wake
//   uffd of a fork -+-> epoll -> read all -> queue -> one: absent?  --> claim, read, verify, Put, wake
//   ...             |     (each thread)    (shared)        zero?     --> zero page
//   stop, kick -----+                                      filling?  --> later
//
// Any number of threads serve at once. Each reads whatever waits before it fills anything, because a VMM that
// forks stands still until its message is read.
class FaultServer {
 public:
  // With `memory` chunks are put there and the faulting mappings of it find them. Without, each address space
  // gets copies of its own. `arrivals`: of an image that is still being fetched, null otherwise.
  static SysError Open(std::shared_ptr<ChunkReader> reader, std::shared_ptr<ImageMemory> memory,
                       int64_t patience_ns, std::shared_ptr<Arrivals> arrivals,
                       std::shared_ptr<FaultServer>* server);

  // Takes a userfaultfd into service. The regions lie inside the image.
  SysError Adopt(Uffd uffd, Regions regions, UniqueFd pidfd);

  // Memory of the caller, for the time of a call.
  struct Shared {
    PageMap states;
    FaultStats stats;
    std::span<uint32_t> order;  // count, then chunks in the order of their first fault
  };
  // Until Stop.
  SysError Serve(const Shared& shared);
  void Stop();

  struct Failure {
    int pid = 0;         // 0 when the process could not be told
    int64_t chunk = -1;  // -1: it was not about a chunk
    std::string reason;
    const char* outcome;  // "killed", "poisoned" or "waiting"
  };
  std::vector<Failure> TakeFailures();

  // Lets go of address spaces that have ended: the kernel does not say. Returns how many are left.
  size_t Sweep();
  bool Serving() const { return serving_ > 0; }
  // Ends every process that waits for a page now, or is known by pidfd.
  void KillAll();

  const ChunkReader& reader() const { return *reader_; }
  const ImageMemory* memory() const { return memory_.get(); }
  const Arrivals* arrivals() const { return arrivals_.get(); }
  bool stopped() const { return stopped_; }

 private:
  class Worker;
  enum class Answer { kDone, kLater, kFar, kGone, kFailed };

  FaultServer(std::shared_ptr<ChunkReader> reader, std::shared_ptr<ImageMemory> memory, int64_t patience_ns,
              std::shared_ptr<Arrivals> arrivals)
      : reader_(std::move(reader)),
        memory_(std::move(memory)),
        patience_ns_(patience_ns),
        arrivals_(std::move(arrivals)) {}

  SysError Add(std::shared_ptr<FaultContext> context);
  void Remove(uint64_t id);
  std::shared_ptr<FaultContext> Find(uint64_t id);
  void Drain(const std::shared_ptr<FaultContext>& context, FaultStats stats);
  void Push(std::vector<PendingFault> faults);
  void Defer(PendingFault fault);
  bool Pop(int64_t now, PendingFault* fault);
  // Until a fault is due: 0, or -1 for never.
  int64_t NextDueNs(int64_t now);
  void Fail(const PendingFault& fault, int64_t chunk, std::string reason);
  void Record(Failure failure);

  const std::shared_ptr<ChunkReader> reader_;
  const std::shared_ptr<ImageMemory> memory_;
  const int64_t patience_ns_;
  const std::shared_ptr<Arrivals> arrivals_;
  UniqueFd epoll_, stop_, kick_;
  std::atomic<bool> stopped_ = false;
  std::atomic<int> serving_ = 0;
  std::atomic<int> idle_ = 0;

  std::mutex mutex_;  // of what follows; never taken while a context's is held
  std::unordered_map<uint64_t, std::shared_ptr<FaultContext>> contexts_;
  std::deque<PendingFault> ready_;
  std::vector<PendingFault> deferred_;
  std::vector<Failure> failures_;
  uint64_t next_id_ = 1;
  size_t sweep_at_ = 64;
};

}  // namespace forkd
