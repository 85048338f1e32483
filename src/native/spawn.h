#pragma once

#include <sys/resource.h>
#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "error.h"
#include "fd.h"

// How a process comes to be, in three files:
//   spawn.cc         reads the options (JavaScript thread), then blocks
//   spawn_thread.cc  the one thread that clones, for the whole process
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

// Complete before the clone: the child may allocate nothing.
struct SpawnPlan {
  std::string file;
  std::vector<std::string> args;
  std::vector<std::string> env;
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
};

// Blocks until the child runs the new program or has failed to; a child that failed has been reaped.
Spawned SpawnOnThread(SpawnPlan& plan);

// Runs in the child, in the parent's memory and on a stack of its own. Returns only when a step failed.
SysError RunChild(SpawnPlan& plan);

}  // namespace forkd
