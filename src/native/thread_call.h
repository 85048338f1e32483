#pragma once

#include <napi.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "error.h"

namespace forkd {

// Work that blocks, in a native thread of its own, and a promise for its end. Such a thread costs what a
// thread costs; a Node worker costs tens of milliseconds of processor time and several MiB.
struct ThreadCall {
  // In the new thread, without JavaScript.
  std::function<void()> work;
  // In the thread of the environment, after it: the value of the promise, or a pending exception.
  std::function<Napi::Value(Napi::Env)> finish;
  // Makes `work` return soon. Called when the environment ends, which then waits for the thread.
  std::function<void()> stop;
  // Gives way to everything else: SCHED_IDLE.
  bool idle = false;

  // The values are kept alive until the work is done. The promise does not keep the event loop alive. When no
  // thread can be had it throws.
  static Napi::Value Start(Napi::Env env, std::initializer_list<Napi::Value> keep, ThreadCall call);
};

// One call. The thread-safe function owns it: its finalizer is the last that happens, also when the
// environment ends before the work does.
class RunningThread {
 public:
  RunningThread(Napi::Env env, std::initializer_list<Napi::Value> keep, ThreadCall call)
      : env_(env), call_(std::move(call)), deferred_(Napi::Promise::Deferred::New(env)) {
    for (Napi::Value value : keep) kept_.push_back(Napi::Persistent(value.As<Napi::Object>()));
  }

  // On failure nothing is left of it.
  static SysError Start(std::unique_ptr<RunningThread> running, Napi::Value* promise) {
    RunningThread* self = running.get();
    *promise = self->deferred_.Promise();
    napi_value name = Napi::String::New(self->env_, "forkd.thread");
    if (napi_create_threadsafe_function(self->env_, nullptr, nullptr, name, 0, 1, self, OnFinalize, self,
                                        OnEnd, &self->end_) != napi_ok) {
      return {"napi_create_threadsafe_function", ENOMEM};
    }
    running.release();
    napi_unref_threadsafe_function(self->env_, self->end_);
    int error = StartThread(self);
    if (error != 0) {
      napi_release_threadsafe_function(self->end_, napi_tsfn_abort);  // finalizes later
      return {"pthread_create", error};
    }
    self->started_ = true;
    napi_add_env_cleanup_hook(self->env_, OnTeardown, self);
    return {};
  }

 private:
  static int StartThread(RunningThread* self) {
    // The process's signals are the main thread's business.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&self->thread_, nullptr, Main, self);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    return error;
  }

  static void* Main(void* data) {
    auto* self = static_cast<RunningThread*>(data);
    if (self->call_.idle) {
      sched_param parameters = {};
      sched_setscheduler(0, SCHED_IDLE, &parameters);  // or it runs like any other
    }
    self->call_.work();
    napi_threadsafe_function end = self->end_;
    napi_call_threadsafe_function(end, nullptr, napi_tsfn_nonblocking);
    napi_release_threadsafe_function(end, napi_tsfn_release);
    return nullptr;
  }

  // `env` is null when it ends.
  static void OnEnd(napi_env env, napi_value, void* context, void*) {
    auto* self = static_cast<RunningThread*>(context);
    if (!env) return;
    Napi::Env living(env);
    Napi::HandleScope scope(living);
    Napi::Value value = self->call_.finish(living);
    if (living.IsExceptionPending()) {
      self->deferred_.Reject(living.GetAndClearPendingException().Value());
    } else {
      self->deferred_.Resolve(value);
    }
    self->kept_.clear();
  }

  static void OnTeardown(void* data) {
    auto* self = static_cast<RunningThread*>(data);
    self->call_.stop();
    self->Join();
  }

  static void OnFinalize(napi_env, void* data, void*) {
    std::unique_ptr<RunningThread> self(static_cast<RunningThread*>(data));
    if (!self->started_) return;
    napi_remove_env_cleanup_hook(self->env_, OnTeardown, self.get());
    self->Join();
  }

  void Join() {
    if (joined_) return;
    joined_ = true;
    pthread_join(thread_, nullptr);
  }

  const Napi::Env env_;
  const ThreadCall call_;
  Napi::Promise::Deferred deferred_;
  std::vector<Napi::ObjectReference> kept_;
  napi_threadsafe_function end_ = nullptr;
  pthread_t thread_ = {};
  bool started_ = false;
  bool joined_ = false;
};

inline Napi::Value ThreadCall::Start(Napi::Env env, std::initializer_list<Napi::Value> keep,
                                     ThreadCall call) {
  Napi::Value promise;
  auto running = std::make_unique<RunningThread>(env, keep, std::move(call));
  if (SysError error = RunningThread::Start(std::move(running), &promise)) return ThrowSysError(env, error);
  return promise;
}

}  // namespace forkd
