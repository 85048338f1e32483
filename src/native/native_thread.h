#pragma once

#include <pthread.h>
#include <signal.h>

#include <functional>

#include "error.h"

namespace forkd {

// A thread that is joined before it goes out of scope. Signals are for Node's threads: it is born with all of
// them blocked.
class NativeThread {
 public:
  NativeThread() = default;
  NativeThread(const NativeThread&) = delete;
  NativeThread& operator=(const NativeThread&) = delete;
  ~NativeThread() { Join(); }

  SysError Start(std::function<void()> run) {
    run_ = std::move(run);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(
        &thread_, nullptr,
        [](void* self) -> void* {
          static_cast<NativeThread*>(self)->run_();
          return nullptr;
        },
        this);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    runs_ = failed == 0;
    return failed ? SysError{"pthread_create", failed} : SysError();
  }

  void Join() {
    if (runs_) pthread_join(thread_, nullptr);
    runs_ = false;
  }

 private:
  std::function<void()> run_;
  pthread_t thread_ = {};
  bool runs_ = false;
};

}  // namespace forkd
