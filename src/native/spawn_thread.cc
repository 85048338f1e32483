// One thread clones for the whole process, whichever environment asks.
//
// PR_SET_PDEATHSIG fires when the *thread* that cloned ends, not the process: a child spawned by a worker
// would be killed with the worker. This thread starts with the first spawn and is never joined, so it ends
// with the process. Everything it touches is allocated once and never destroyed: exit(3) runs static
// destructors while it still waits.
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>

#include "spawn.h"

namespace forkd {

namespace {

// The child calls a dozen thin wrappers; signals, which could need more, are blocked until it execs.
constexpr size_t kChildStackBytes = 64 * 1024;
// The child's, and below it one for whom a midwife starts, one after the other.
constexpr size_t kStacksBytes = 2 * kChildStackBytes;

struct Request {
  SpawnPlan& plan;
  Spawned result;
  bool done = false;
};

// Unsanitized: before a call that does not return, AddressSanitizer would look for the end of a stack it does
// not know.
__attribute__((no_sanitize_address)) int StartChild(void* argument) {
  // The parent waits in vfork and reads this afterwards: shared memory does the work of an error pipe.
  auto* start = static_cast<ChildStart*>(argument);
  if (start->plan.init) {
    RunMidwife(*start);
    _exit(0);
  }
  start->inside = getpid();
  start->error = RunChild(start->plan);
  _exit(127);
}

void Reap(idtype_t kind, id_t id) {
  siginfo_t ignored;
  while (waitid(kind, id, &ignored, WEXITED) != 0 && errno == EINTR) {
  }
}

// What a midwife has started is ours. When one of the two has failed, so has the other.
Spawned TakeOver(ChildStart& start) {
  Spawned spawned = {start.pid, {}, start.error, start.inside};
  if (!spawned.error && (start.pid < 0 || start.init < 0)) spawned.error = {"clone", ESRCH};
  // A pid of our own child stays its own until we reap it.
  if (!spawned.error) {
    spawned.pidfd = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, start.pid, 0)));
    spawned.init = UniqueFd(static_cast<int>(syscall(SYS_pidfd_open, start.init, 0)));
    if (!spawned.pidfd.Valid() || !spawned.init.Valid()) spawned.error = SysError::Last("pidfd_open");
  }
  if (!spawned.error) return spawned;
  for (pid_t pid : {start.pid, start.init}) {
    if (pid > 0 && kill(pid, SIGKILL) == 0) Reap(P_PID, static_cast<id_t>(pid));
  }
  return {-1, {}, spawned.error};
}

// clone(2), not clone3: container runtimes refuse clone3 with ENOSYS, and nothing here needs what it adds.
Spawned CloneChild(SpawnPlan& plan, uint8_t* stack_top) {
  // A signal in the child would run Node's handlers in the shared memory. Not pthread_sigmask: it leaves out
  // libc's own signals, which the child must not take either.
  unsigned long all = ~0ul, before = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &before, sizeof all);
  plan.parent = getpid();
  ChildStart start = {plan, stack_top - kChildStackBytes};
  int pidfd = -1;
  pid_t pid = clone(StartChild, stack_top, CLONE_VM | CLONE_VFORK | CLONE_PIDFD | SIGCHLD, &start, &pidfd);
  SysError clone_error = SysError::Last("clone");
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &before, nullptr, sizeof before);
  if (pid < 0) return {-1, {}, clone_error};

  Spawned spawned = {pid, UniqueFd(pidfd), start.error, start.inside};
  if (plan.init || spawned.error) Reap(P_PIDFD, static_cast<id_t>(pidfd));
  if (plan.init) return TakeOver(start);
  if (spawned.error) spawned.pidfd.Reset();
  return spawned;
}

class SpawnThread {
 public:
  // The first caller starts it. An error is not kept: the next spawn tries again.
  SysError EnsureStarted() {
    std::lock_guard lock(mutex_);
    if (started_) return {};
    void* stack =
        mmap(nullptr, kStacksBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (stack == MAP_FAILED) return SysError::Last("mmap");

    // Born with signals blocked, as libuv's own threads are: they are for the main thread.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_t thread;
    int error = pthread_create(&thread, nullptr, Main, this);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error) {
      munmap(stack, kStacksBytes);
      return {"pthread_create", error};
    }
    pthread_setname_np(thread, "forkd-spawn");
    pthread_detach(thread);
    stack_top_ = static_cast<uint8_t*>(stack) + kStacksBytes;
    started_ = true;
    return {};
  }

  Spawned Run(SpawnPlan& plan) {
    Request request = {plan, {}};
    std::unique_lock lock(mutex_);
    queue_.push_back(&request);
    changed_.notify_all();
    changed_.wait(lock, [&] { return request.done; });
    return std::move(request.result);
  }

 private:
  static void* Main(void* self) {
    static_cast<SpawnThread*>(self)->Serve();
    return nullptr;
  }

  [[noreturn]] void Serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return !queue_.empty(); });
      Request* request = queue_.front();
      queue_.pop_front();
      lock.unlock();
      request->result = CloneChild(request->plan, stack_top_);
      lock.lock();
      request->done = true;
      changed_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request*> queue_;  // the requests live on the stacks of the callers, who wait
  bool started_ = false;
  uint8_t* stack_top_ = nullptr;  // one clone at a time, so one pair of stacks
};

SpawnThread& TheSpawnThread() {
  static SpawnThread* thread = new SpawnThread;
  return *thread;
}

}  // namespace

Spawned SpawnOnThread(SpawnPlan& plan) {
  if (SysError error = TheSpawnThread().EnsureStarted()) return {-1, {}, error};
  return TheSpawnThread().Run(plan);
}

}  // namespace forkd
