#pragma once

#include <sched.h>

#include <thread>
#include <utility>

#include "error.h"

namespace forkd {

// Runs `step` in another network namespace: on a thread of its own, which enters and ends, so that the
// calling thread never leaves its own. A socket, or a tap, belongs to the namespace of the thread that makes
// it, for life.
template <typename Step>
SysError InNamespace(int netns, Step step) {
  SysError error;
  std::thread([&] { error = setns(netns, CLONE_NEWNET) < 0 ? SysError::Last("setns") : step(); }).join();
  return error;
}

}  // namespace forkd
