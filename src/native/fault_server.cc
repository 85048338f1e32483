#include "fault_server.h"

#include <linux/userfaultfd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "culprit.h"
#include "io.h"

namespace forkd {

namespace {

// Marks in epoll's data; contexts have their id shifted left by one, and 1 for their pidfd.
constexpr uint64_t kStopMark = 0;
constexpr uint64_t kKickMark = 1;

// How soon to look again at a chunk that another thread is filling: about as long as filling one takes.
constexpr int64_t kLookAgainNs = 30'000;
// The same for one that is being fetched from another machine.
constexpr int64_t kLookFarNs = 300'000;
// An unmapping or a move may cross with a fault. More than this is a VMM that registered what it did not
// name.
constexpr int kStraysMax = 1000;

void Ring(const UniqueFd& eventfd) {
  uint64_t one = 1;
  // EAGAIN: it has been rung 2^64 times, and is heard all the same.
  [[maybe_unused]] ssize_t written = write(eventfd.Get(), &one, sizeof one);
}

}  // namespace

SysError FaultServer::Open(std::shared_ptr<ChunkReader> reader, std::shared_ptr<ImageMemory> memory,
                           int64_t patience_ns, std::shared_ptr<Arrivals> arrivals,
                           std::shared_ptr<FaultServer>* server) {
  std::shared_ptr<FaultServer> made(
      new FaultServer(std::move(reader), std::move(memory), patience_ns, std::move(arrivals)));
  made->epoll_ = UniqueFd(epoll_create1(EPOLL_CLOEXEC));
  if (!made->epoll_.Valid()) return SysError::Last("epoll_create1");
  for (auto [fd, mark] : {std::pair{&made->stop_, kStopMark}, {&made->kick_, kKickMark}}) {
    *fd = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!fd->Valid()) return SysError::Last("eventfd");
    epoll_event interest = {EPOLLIN, {.u64 = mark}};
    if (epoll_ctl(made->epoll_.Get(), EPOLL_CTL_ADD, fd->Get(), &interest) != 0) {
      return SysError::Last("epoll_ctl");
    }
  }
  *server = std::move(made);
  return {};
}

SysError FaultServer::Adopt(Uffd uffd, Regions regions, UniqueFd pidfd) {
  // A process that is not known is taken to be of our own.
  const int pid = pidfd.Valid() ? PidOf(pidfd.Get()) : getpid();
  auto context = std::make_shared<FaultContext>(std::move(uffd), std::move(regions), std::move(pidfd),
                                                memory_ == nullptr);
  context->pid_namespace = PidNamespaceOf(pid);
  return Add(std::move(context));
}

SysError FaultServer::Add(std::shared_ptr<FaultContext> context) {
  bool sweep;
  {
    std::lock_guard lock(mutex_);
    context->id = next_id_++;
    contexts_[context->id] = context;
    // Amortised: what has ended is let go when there are twice as many as were alive the last time.
    sweep = contexts_.size() >= sweep_at_;
  }
  if (sweep) Sweep();
  epoll_event interest = {EPOLLIN, {.u64 = context->id << 1}};
  SysError error;
  if (epoll_ctl(epoll_.Get(), EPOLL_CTL_ADD, context->uffd().Get(), &interest) != 0) {
    error = SysError::Last("epoll_ctl");
  } else if (context->pidfd().Valid()) {
    epoll_event end = {EPOLLIN, {.u64 = context->id << 1 | 1}};
    if (epoll_ctl(epoll_.Get(), EPOLL_CTL_ADD, context->pidfd().Get(), &end) != 0) {
      error = SysError::Last("epoll_ctl");
    }
  }
  if (error) Remove(context->id);
  return error;
}

void FaultServer::Remove(uint64_t id) {
  std::lock_guard lock(mutex_);
  auto found = contexts_.find(id);
  if (found == contexts_.end()) return;
  // Not left to the closing: another thread may hold the context for a moment yet.
  epoll_ctl(epoll_.Get(), EPOLL_CTL_DEL, found->second->uffd().Get(), nullptr);
  if (found->second->pidfd().Valid()) {
    epoll_ctl(epoll_.Get(), EPOLL_CTL_DEL, found->second->pidfd().Get(), nullptr);
  }
  contexts_.erase(found);
}

std::shared_ptr<FaultContext> FaultServer::Find(uint64_t id) {
  std::lock_guard lock(mutex_);
  auto found = contexts_.find(id);
  return found == contexts_.end() ? nullptr : found->second;
}

size_t FaultServer::Sweep() {
  std::vector<std::shared_ptr<FaultContext>> contexts;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, context] : contexts_) contexts.push_back(context);
  }
  for (const auto& context : contexts) {
    if (!context->Alive()) Remove(context->id);
  }
  std::lock_guard lock(mutex_);
  sweep_at_ = std::max<size_t>(64, 2 * contexts_.size());
  return contexts_.size();
}

void FaultServer::Drain(const std::shared_ptr<FaultContext>& context, FaultStats stats) {
  FaultContext::Drained drained;
  SysError error = context->Drain(&drained);
  stats.Add(FaultStats::kFaults, static_cast<int64_t>(drained.faults.size()));
  stats.Add(FaultStats::kForks, static_cast<int64_t>(drained.children.size()));
  stats.Add(FaultStats::kChanges, static_cast<int64_t>(drained.changes));
  for (auto& child : drained.children) {
    if (SysError failed = Add(std::move(child))) error = failed;
  }
  Push(std::move(drained.faults));
  if (!error) return;
  // Its messages cannot be read, or a child of it not be served: no one may wait for what does not come.
  stats.Add(FaultStats::kFailed, 1);
  PendingFault none;
  none.context = context;
  Fail(none, -1, ChunkError{error}.Text());
  Remove(context->id);
}

void FaultServer::Push(std::vector<PendingFault> faults) {
  if (faults.empty()) return;
  size_t waiting;
  {
    std::lock_guard lock(mutex_);
    for (PendingFault& fault : faults) ready_.push_back(std::move(fault));
    waiting = ready_.size();
  }
  // This thread takes one of them.
  if (waiting > 1 && idle_ > 0) Ring(kick_);
}

void FaultServer::Defer(PendingFault fault) {
  std::lock_guard lock(mutex_);
  deferred_.push_back(std::move(fault));
}

bool FaultServer::Pop(int64_t now, PendingFault* fault) {
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < deferred_.size();) {
    if (deferred_[i].retry_ns > now) {
      i++;
      continue;
    }
    ready_.push_back(std::move(deferred_[i]));
    deferred_[i] = std::move(deferred_.back());
    deferred_.pop_back();
  }
  if (ready_.empty()) return false;
  *fault = std::move(ready_.front());
  ready_.pop_front();
  return true;
}

int64_t FaultServer::NextDueNs(int64_t now) {
  std::lock_guard lock(mutex_);
  if (!ready_.empty()) return 0;
  int64_t next = -1;
  for (const PendingFault& fault : deferred_) {
    int64_t left = std::max<int64_t>(0, fault.retry_ns - now);
    next = next < 0 ? left : std::min(next, left);
  }
  return next;
}

void FaultServer::Fail(const PendingFault& fault, int64_t chunk, std::string reason) {
  FaultContext& context = *fault.context;
  Culprit culprit = FindCulprit(fault.thread, context.pid_namespace, fault.address,
                                memory_ ? memory_->device() : 0, memory_ ? memory_->inode() : 0);
  const UniqueFd& process = culprit.Valid() ? culprit.pidfd : context.pidfd();
  if (process.Valid()) {
    // Written down first: whoever sees the end of the process finds the reason.
    Record({culprit.Valid() ? culprit.pid : PidOf(process.Get()), chunk, std::move(reason), "killed"});
    Kill(process);
    return;
  }
  const char* outcome = "waiting";
  if (chunk >= 0) {
    SysError error;
    uint64_t begin = static_cast<uint64_t>(chunk) * kServedChunkBytes;
    Range image = {begin, std::min(begin + kServedChunkBytes, reader_->image_bytes())};
    if (context.PlacePoison(image, &error) == Placed::kDone) outcome = "poisoned";
  }
  Record({0, chunk, std::move(reason), outcome});
}

void FaultServer::Record(Failure failure) {
  std::lock_guard lock(mutex_);
  failures_.push_back(std::move(failure));
}

std::vector<FaultServer::Failure> FaultServer::TakeFailures() {
  std::lock_guard lock(mutex_);
  return std::exchange(failures_, {});
}

void FaultServer::Stop() {
  stopped_ = true;
  Ring(stop_);  // and never reset: every thread is to hear it
}

void FaultServer::KillAll() {
  std::vector<std::shared_ptr<FaultContext>> contexts;
  {
    std::lock_guard lock(mutex_);
    for (const auto& [id, context] : contexts_) contexts.push_back(context);
  }
  for (const auto& context : contexts) {
    if (context->pidfd().Valid()) Kill(context->pidfd());
    Drain(context, FaultStats());
  }
  PendingFault fault;
  while (Pop(INT64_MAX, &fault)) Fail(fault, -1, "the fault server was closed");
}

// One thread that serves.
class FaultServer::Worker {
 public:
  Worker(FaultServer& server, const Shared& shared)
      : server_(server), shared_(shared), buffer_(server.memory_ ? nullptr : new uint8_t[kServedChunkBytes]) {
    if (server.memory_) {
      filler_ = std::make_unique<ChunkFiller>(*server.reader_, *server.memory_, shared.states, shared.stats,
                                              server.arrivals_.get());
    }
  }

  SysError Run() {
    while (!server_.stopped_) {
      if (SysError error = Wait()) return error;
      PendingFault fault;
      if (server_.Pop(MonotonicNs(), &fault)) Serve(std::move(fault));
    }
    return {};
  }

 private:
  // Reads what waits; sleeps only when there is nothing to do.
  SysError Wait() {
    constexpr int kEvents = 16;
    epoll_event events[kEvents];
    int64_t due = server_.NextDueNs(MonotonicNs());
    timespec timeout = {due / 1'000'000'000, due % 1'000'000'000};
    if (due != 0) server_.idle_++;
    int count = epoll_pwait2(server_.epoll_.Get(), events, kEvents, due < 0 ? nullptr : &timeout, nullptr);
    if (count < 0 && errno == ENOSYS) {  // before Linux 5.11
      int timeout_ms = due < 0 ? -1 : static_cast<int>((due + 999'999) / 1'000'000);
      count = epoll_wait(server_.epoll_.Get(), events, kEvents, timeout_ms);
    }
    SysError error = count < 0 && errno != EINTR ? SysError::Last("epoll_wait") : SysError();
    if (due != 0) server_.idle_--;
    for (int i = 0; i < count; i++) {
      uint64_t mark = events[i].data.u64;
      if (mark == kStopMark) continue;
      if (mark == kKickMark) {
        uint64_t rings;
        [[maybe_unused]] ssize_t bytes = read(server_.kick_.Get(), &rings, sizeof rings);
        continue;
      }
      auto context = server_.Find(mark >> 1);
      if (!context) continue;
      if (mark & 1) {
        server_.Remove(context->id);  // the process has ended
      } else {
        server_.Drain(context, shared_.stats);
      }
    }
    return error;
  }

  void Serve(PendingFault fault) {
    switch (server_.memory_ ? InMemory(&fault) : ByCopy(&fault)) {
      case Answer::kDone:
        shared_.stats.Answered(MonotonicNs() - fault.read_ns);
        break;
      case Answer::kLater:
        fault.retry_ns = MonotonicNs() + kLookAgainNs;
        server_.Defer(std::move(fault));
        break;
      case Answer::kFar:
        fault.retry_ns = MonotonicNs() + kLookFarNs;
        server_.Defer(std::move(fault));
        break;
      case Answer::kGone:
        server_.Remove(fault.context->id);
        break;
      case Answer::kFailed:
        shared_.stats.Add(FaultStats::kFailed, 1);
        server_.Fail(fault, chunk_, error_.Text());
        break;
    }
  }

  // Finds chunk_ and image_. False when the address shows nothing of the image.
  bool Locate(const PendingFault& fault, uint64_t* offset) {
    if (!fault.context->ImageOffset(fault.address, offset)) return false;
    chunk_ = static_cast<int64_t>(*offset / kServedChunkBytes);
    uint64_t begin = *offset - *offset % kServedChunkBytes;
    image_ = {begin, std::min(begin + kServedChunkBytes, server_.reader_->image_bytes())};
    return true;
  }

  Answer Stray(const PendingFault& fault) {
    chunk_ = -1;
    error_ = {{}, "touched memory that its regions do not name"};
    if (fault.context->Stray() > kStraysMax) return Answer::kFailed;
    return AnswerOf(fault, fault.context->WakePage(fault.address));
  }

  Answer InMemory(PendingFault* fault) {
    uint64_t offset;
    if (!Locate(*fault, &offset)) return Stray(*fault);
    FaultContext& context = *fault->context;
    int64_t now = fault->waiting_since ? MonotonicNs() : 0;
    bool take_over = fault->waiting_since && now - fault->waiting_since >= server_.patience_ns_;
    SysError* placing = &error_.sys;
    error_ = {};
    switch (filler_->Fill(static_cast<uint64_t>(chunk_), take_over, &error_)) {
      case ChunkFiller::Result::kFilled:
        Record();
        return AnswerOf(*fault, context.WakeChunk(image_));
      case ChunkFiller::Result::kZero:
        shared_.stats.Add(FaultStats::kZeroed, 1);
        return AnswerOf(*fault, context.PlaceZeros(image_, placing));
      case ChunkFiller::Result::kPresent:
        if (server_.reader_->IsZero(static_cast<uint64_t>(chunk_))) {
          shared_.stats.Add(FaultStats::kZeroed, 1);
          return AnswerOf(*fault, context.PlaceZeros(image_, placing));
        }
        if (server_.memory_->HasPage(offset)) {
          shared_.stats.Add(FaultStats::kWoken, 1);
          return AnswerOf(*fault, context.WakeChunk(image_));
        }
        // A hole in a chunk that is complete: the filler left out a page of zeros.
        shared_.stats.Add(FaultStats::kZeroed, 1);
        return AnswerOf(*fault, context.PlaceZeros({offset, offset + kPageBytes}, placing));
      case ChunkFiller::Result::kBusy:
        if (!fault->waiting_since) {
          fault->waiting_since = MonotonicNs();
          shared_.stats.Add(FaultStats::kWaited, 1);
        }
        return Answer::kLater;
      case ChunkFiller::Result::kAway:
        server_.arrivals_->Ask(static_cast<uint32_t>(chunk_));
        return Answer::kFar;
      case ChunkFiller::Result::kFailed:
        break;
    }
    return Answer::kFailed;
  }

  Answer ByCopy(PendingFault* fault) {
    uint64_t offset;
    if (!Locate(*fault, &offset)) return Stray(*fault);
    FaultContext& context = *fault->context;
    uint64_t chunk = static_cast<uint64_t>(chunk_);
    error_ = {};
    if (context.Removed(fault->address)) {
      shared_.stats.Add(FaultStats::kZeroed, 1);
      uint64_t begin = fault->address - fault->address % kServedChunkBytes;
      return AnswerOf(*fault, context.PlaceRemoved({begin, begin + kServedChunkBytes}, &error_.sys));
    }
    if (server_.reader_->IsZero(chunk)) {
      shared_.stats.Add(FaultStats::kZeroed, 1);
      return AnswerOf(*fault, context.PlaceZeros(image_, &error_.sys));
    }
    uint64_t read_bytes = 0;
    error_ = server_.reader_->Read(chunk, buffer_.get(), &read_bytes);
    shared_.stats.Add(FaultStats::kReadBytes, static_cast<int64_t>(read_bytes));
    if (error_) return Answer::kFailed;
    if (IsZero(buffer_.get(), kServedChunkBytes)) {
      shared_.stats.Add(FaultStats::kZeroed, 1);
      return AnswerOf(*fault, context.PlaceZeros(image_, &error_.sys));
    }
    Answer answer = AnswerOf(*fault, context.PlaceCopy(image_, buffer_.get(), &error_.sys));
    if (answer == Answer::kDone) {
      shared_.stats.Add(FaultStats::kFilled, 1);
      // Here a state says only whether anybody has asked for the chunk.
      if (Move(shared_.states[chunk], kAbsent, kPresent)) Record();
    }
    return answer;
  }

  Answer AnswerOf(const PendingFault& fault, Placed placed) {
    switch (placed) {
      case Placed::kDone:
        return Answer::kDone;
      case Placed::kBusy:
        server_.Drain(fault.context, shared_.stats);
        return Answer::kLater;
      case Placed::kGone:
        return Answer::kGone;
      case Placed::kFailed:
        break;
    }
    return Answer::kFailed;
  }

  void Record() {
    if (shared_.order.size() < 2) return;
    std::atomic_ref<uint32_t> count(shared_.order[0]);
    uint32_t at = count.load(std::memory_order_relaxed);
    do {
      if (at >= shared_.order.size() - 1) return;
    } while (!count.compare_exchange_weak(at, at + 1, std::memory_order_relaxed));
    std::atomic_ref<uint32_t>(shared_.order[1 + at])
        .store(static_cast<uint32_t>(chunk_), std::memory_order_release);
  }

  FaultServer& server_;
  Shared shared_;
  std::unique_ptr<ChunkFiller> filler_;
  std::unique_ptr<uint8_t[]> buffer_;  // when copying
  // Of the fault at hand.
  int64_t chunk_ = -1;
  Range image_;
  ChunkError error_;
};

SysError FaultServer::Serve(const Shared& shared) {
  serving_++;
  SysError error = Worker(*this, shared).Run();
  serving_--;
  return error;
}

}  // namespace forkd
