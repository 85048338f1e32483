// Processes by descriptor: a pidfd cannot come to mean another process, as a reused pid can.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <uv.h>

#include <memory>

#include "addon.h"
#include "args.h"
#include "culprit.h"
#include "error.h"
#include "fd.h"

namespace forkd {

namespace {

Napi::Value PidfdOpen(const Napi::CallbackInfo& info) {
  Args args(info);
  int pid = args.Int(0, "pid", 1, INT32_MAX);
  if (!args.Ok()) return {};

  long fd = syscall(SYS_pidfd_open, pid, 0);  // always close-on-exec
  if (fd < 0) return ThrowErrno(info.Env(), "pidfd_open");
  return Napi::Number::New(info.Env(), static_cast<double>(fd));
}

Napi::Value PidfdSignal(const Napi::CallbackInfo& info) {
  Args args(info);
  int pidfd = args.Fd(0, "pidfd");
  int signal = args.Int(1, "signal", 0, 64);
  if (!args.Ok()) return {};

  long result = syscall(SYS_pidfd_send_signal, pidfd, signal, nullptr, 0);
  if (result != 0 && errno != ESRCH) return ThrowErrno(info.Env(), "pidfd_send_signal");
  return Napi::Boolean::New(info.Env(), result == 0);
}

Napi::Value PidfdPid(const Napi::CallbackInfo& info) {
  Args args(info);
  int pidfd = args.Fd(0, "pidfd");
  if (!args.Ok()) return {};
  return Napi::Number::New(info.Env(), PidOf(pidfd));
}

Napi::Value PidfdGetfd(const Napi::CallbackInfo& info) {
  Args args(info);
  int pidfd = args.Fd(0, "pidfd");
  int theirs = args.Fd(1, "fd");
  if (!args.Ok()) return {};
  long fd = syscall(SYS_pidfd_getfd, pidfd, theirs, 0);  // always close-on-exec
  if (fd < 0) return ThrowErrno(info.Env(), "pidfd_getfd");
  return Napi::Number::New(info.Env(), static_cast<double>(fd));
}

// One pidfdWatch. It owns itself from Start until libuv has let go of the handle; three things end it, each
// through Close(): the process ended, JavaScript said stop, the environment is torn down (the cleanup hook,
// which libuv's close callback completes: Node runs a terminated worker's loop until then).
class Watch {
 public:
  static std::shared_ptr<Watch> Create(Napi::Env env, UniqueFd pidfd, Napi::Function done) {
    auto watch = std::shared_ptr<Watch>(new Watch(env, std::move(pidfd), done));
    watch->self_ = watch;
    return watch;
  }

  ~Watch() = default;

  // On failure the watch is gone. Nothing may be kept but weak pointers.
  SysError Start() {
    uv_loop_t* loop = nullptr;
    napi_get_uv_event_loop(env_, &loop);
    if (int error = uv_poll_init(loop, &poll_, pidfd_.Get())) {
      self_.reset();
      return {"epoll_ctl", -error};
    }
    poll_.data = this;
    uv_unref(reinterpret_cast<uv_handle_t*>(&poll_));
    napi_add_async_cleanup_hook(env_, OnTeardown, this, &hook_);
    if (int error = uv_poll_start(&poll_, UV_READABLE, OnReadable)) {
      Close();
      return {"epoll_ctl", -error};
    }
    return {};
  }

  void Close() {
    if (closing_) return;
    closing_ = true;
    // The callback goes now, while JavaScript may still be touched; the close callback may come after its
    // end.
    done_.Reset();
    context_.reset();
    uv_close(reinterpret_cast<uv_handle_t*>(&poll_), [](uv_handle_t* handle) {
      auto* watch = static_cast<Watch*>(handle->data);
      if (watch->hook_) napi_remove_async_cleanup_hook(watch->hook_);
      watch->self_.reset();  // deletes *watch, and with it the descriptor that was polled
    });
  }

 private:
  Watch(Napi::Env env, UniqueFd pidfd, Napi::Function done)
      : env_(env),
        pidfd_(std::move(pidfd)),
        done_(Napi::Persistent(done)),
        context_(std::make_unique<Napi::AsyncContext>(env, "forkd.pidfdWatch")) {}

  static void OnTeardown(napi_async_cleanup_hook_handle, void* watch) { static_cast<Watch*>(watch)->Close(); }

  static void OnReadable(uv_poll_t* poll, int, int) { static_cast<Watch*>(poll->data)->Ended(); }

  void Ended() {
    siginfo_t status = {};
    int result;
    do {
      result = waitid(P_PIDFD, static_cast<id_t>(pidfd_.Get()), &status, WEXITED | WNOHANG);
    } while (result != 0 && errno == EINTR);
    if (result == 0 && status.si_pid == 0) return;  // woken too early: go on polling

    auto keep = self_;
    Napi::HandleScope scope(env_);
    Napi::Function done = done_.Value();
    auto context = std::move(context_);
    Close();

    // Whatever waitid failed with, the process has ended and its status is not ours to know.
    Napi::Object report = Napi::Object::New(env_);
    bool exited = result == 0 && status.si_code == CLD_EXITED;
    bool killed = result == 0 && !exited;
    report.Set("code", exited ? Napi::Number::New(env_, status.si_status) : env_.Null());
    report.Set("signal", killed ? Napi::Number::New(env_, status.si_status) : env_.Null());
    done.MakeCallback(env_.Global(), {report}, *context);
    // Nobody is above us on the stack: an exception that the callback threw is an uncaught one.
    if (env_.IsExceptionPending()) napi_fatal_exception(env_, env_.GetAndClearPendingException().Value());
  }

  Napi::Env env_;
  UniqueFd pidfd_;  // our own, so that the caller may close theirs while we poll
  Napi::FunctionReference done_;
  std::unique_ptr<Napi::AsyncContext> context_;
  uv_poll_t poll_;
  napi_async_cleanup_hook_handle hook_ = nullptr;
  bool closing_ = false;
  std::shared_ptr<Watch> self_;
};

Napi::Value PidfdWatch(const Napi::CallbackInfo& info) {
  Args args(info);
  int pidfd = args.Fd(0, "pidfd");
  Napi::Function done = args.Function(1, "done");
  if (!args.Ok()) return {};

  UniqueFd copy(fcntl(pidfd, F_DUPFD_CLOEXEC, 0));
  if (!copy.Valid()) return ThrowErrno(info.Env(), "fcntl");
  std::weak_ptr<Watch> watch = Watch::Create(info.Env(), std::move(copy), done);
  if (SysError error = watch.lock()->Start()) return ThrowSysError(info.Env(), error);
  return Napi::Function::New(info.Env(), [watch](const Napi::CallbackInfo&) {
    if (auto live = watch.lock()) live->Close();
  });
}

}  // namespace

void RegisterPidfd(Napi::Env env, Napi::Object exports) {
  Export<PidfdOpen>(env, exports, "pidfdOpen");
  Export<PidfdSignal>(env, exports, "pidfdSignal");
  Export<PidfdPid>(env, exports, "pidfdPid");
  Export<PidfdGetfd>(env, exports, "pidfdGetfd");
  Export<PidfdWatch>(env, exports, "pidfdWatch");
}

}  // namespace forkd
