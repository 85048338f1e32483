// The scheduling of one thread: sched_setscheduler(2).
#include <sched.h>

#include "addon.h"
#include "args.h"
#include "error.h"

namespace forkd {

namespace {

Napi::Value ThreadIdlePriority(const Napi::CallbackInfo& info) {
  Args args(info);
  bool on = args.Bool(0, "on");
  if (!args.Ok()) return {};
  // For Linux 0 is the calling thread, not the process.
  sched_param parameters = {};
  if (sched_setscheduler(0, on ? SCHED_IDLE : SCHED_OTHER, &parameters) != 0) {
    return ThrowErrno(info.Env(), "sched_setscheduler");
  }
  return info.Env().Undefined();
}

}  // namespace

void RegisterThreadPriority(Napi::Env env, Napi::Object exports) {
  Export<ThreadIdlePriority>(env, exports, "threadIdlePriority");
}

}  // namespace forkd
