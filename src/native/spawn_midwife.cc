// A child in a pid namespace of its own cannot be the first process of it: all others end with that, and the
// copies that a child makes of itself are to outlive it. So a process in between makes the namespace and
// starts two in it, the first of all and the child, with CLONE_PARENT: both are children of whoever wanted
// the child. Then it ends.
//
// The same memory is shared by all of them; see spawn_child.cc. Each clone waits until the other has called
// execve or has ended, so two stacks are enough.
#include <sched.h>
#include <unistd.h>

#include <string_view>

#include "spawn.h"

namespace forkd {

namespace {

// Unsanitized, as StartChild.
__attribute__((no_sanitize_address)) int StartInit(void* argument) {
  auto* start = static_cast<ChildStart*>(argument);
  start->error = RunInit(start->plan);
  // Its program is another than the one that was asked for.
  if (std::string_view(start->error.syscall) == "execve") start->error.syscall = "execve of the init";
  _exit(127);
}

__attribute__((no_sanitize_address)) int StartMember(void* argument) {
  auto* start = static_cast<ChildStart*>(argument);
  start->inside = getpid();
  start->error = RunChild(start->plan);
  _exit(127);
}

// Its end is told to our parent as ours is: with SIGCHLD.
pid_t CloneSibling(int (*run)(void*), ChildStart& start) {
  const pid_t pid = clone(run, start.stack_top, CLONE_VM | CLONE_VFORK | CLONE_PARENT, &start);
  if (pid < 0) start.error = SysError::Last("clone");
  return pid;
}

}  // namespace

void RunMidwife(ChildStart& start) {
  if ((start.error = EnterUserNamespace(start.plan))) return;
  if (unshare(CLONE_NEWPID) != 0) {
    start.error = SysError::Last("unshare of a pid namespace");
    return;
  }
  start.init = CloneSibling(StartInit, start);
  if (start.error) return;
  start.pid = CloneSibling(StartMember, start);
}

}  // namespace forkd
