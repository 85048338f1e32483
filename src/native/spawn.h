#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "error.h"
#include "fd.h"

// How a process comes to be, in four files:
//   spawn.cc         reads the options (JavaScript thread), then blocks
//   spawn_thread.cc  the one thread that clones, for the whole process
//   spawn_midwife.cc a pid namespace, its first process, and the child in it
//   spawn_child.cc   what the child does between clone and execve
namespace forkd {

struct FdMapping {
  int source;
  int target;
  int moved = -1;  // scratch of the child: the source, out of the targets' way
};

struct ResourceLimit {
  int resource;
  rlim_t value;  // soft and hard
};

// The first process of a pid namespace.
struct InitPlan {
  std::string file;
  std::vector<std::string> args;
  int line;  // where the child finds the writing end of the pipe between the two

  std::vector<FdMapping> fds;

  std::vector<char*> argv;
};

// Complete before the clone: the child may allocate nothing.
struct SpawnPlan {
  std::string file;
  std::vector<std::string> args;
  std::vector<std::string> env;
  std::optional<InitPlan> init;  // the child is in a pid namespace of its own, whose first process this is
  std::optional<std::string> cwd;
  std::vector<FdMapping> fds;  // ascending, distinct targets
  int netns = -1;
  int unshare = 0;               // CLONE_NEW*
  std::string uid_map, gid_map;  // of a user namespace, empty = none
  std::vector<ResourceLimit> limits;
  std::vector<int> cgroups;
  bool die_with_parent = false;
  bool batch = false;
  std::string oom_score_adj;  // decimal, empty = inherit

  std::vector<char*> argv;  // point into args and env, end with nullptr
  std::vector<char*> envp;
  pid_t parent = 0;
};

struct Spawned {
  pid_t pid = -1;
  UniqueFd pidfd;
  SysError error;
  pid_t inside = -1;  // its pid in its own namespace
  UniqueFd init{};    // pidfd of the first process of that, where it was made for it
};

// What a process that shares our memory leaves there.
struct ChildStart {
  SpawnPlan& plan;
  uint8_t* stack_top;  // for whom the midwife starts
  SysError error{};
  pid_t inside = -1;
  pid_t pid = -1, init = -1;  // children of ours that the midwife has started
};

// Blocks until the child runs the new program or has failed to; a child that failed has been reaped.
Spawned SpawnOnThread(SpawnPlan& plan);

// These run in a child, in the parent's memory and on a stack of its own, and return only when a step failed.
SysError RunChild(SpawnPlan& plan);
SysError RunInit(SpawnPlan& plan);

// Makes a pid namespace, and starts its first process and the child of the plan, both as children of our
// parent. Runs in a child as well.
void RunMidwife(ChildStart& start);

// Makes the user namespace of the plan, if it wants one.
SysError EnterUserNamespace(const SpawnPlan& plan);

}  // namespace forkd
