// Waiting for any of many descriptors: poll(2).
#include <poll.h>

#include <chrono>

#include "addon.h"
#include "args.h"
#include "error.h"

namespace forkd {

namespace {

using Clock = std::chrono::steady_clock;

Napi::Value PollReadable(const Napi::CallbackInfo& info) {
  Args args(info);
  std::vector<int> fds = args.Fds(0, "fds");
  int timeout = args.Int(1, "timeoutMs", 0, INT32_MAX);
  if (!args.Ok()) return info.Env().Undefined();

  std::vector<pollfd> waiting;
  waiting.reserve(fds.size());
  for (int fd : fds) waiting.push_back({fd, POLLIN, 0});
  auto deadline = Clock::now() + std::chrono::milliseconds(timeout);
  int ready = poll(waiting.data(), waiting.size(), timeout);
  while (ready < 0 && errno == EINTR) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    ready = poll(waiting.data(), waiting.size(), left > 0 ? static_cast<int>(left) : 0);
  }
  if (ready < 0) return ThrowErrno(info.Env(), "poll");

  Napi::Array result = Napi::Array::New(info.Env());
  for (const pollfd& one : waiting) {
    // POLLHUP and POLLERR too: the read that follows tells what happened.
    if (one.revents != 0) result.Set(result.Length(), one.fd);
  }
  return result;
}

}  // namespace

void RegisterPoll(Napi::Env env, Napi::Object exports) {
  Export<PollReadable>(env, exports, "pollReadable");
}

}  // namespace forkd
