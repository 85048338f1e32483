#pragma once

#include <sys/types.h>

#include <cstdint>

#include "fd.h"

namespace forkd {

// The process that one of its threads is a fault of: pidfd and pid. Not valid when it cannot be told for
// sure.
//
// `thread` is what the kernel wrote into the fault: the number of the thread that touched the page, in the
// pid namespace of that thread. That should be `pid_namespace`, the one of the process whose memory it is;
// but it need not be of that process (process_vm_readv: it may be ours). It counts only when the process maps
// `address`, from the file `device`:`inode` (inode 0: from anywhere), is in `pid_namespace`, and is not this
// one.
struct Culprit {
  int pid = 0;
  UniqueFd pidfd;
  bool Valid() const { return pidfd.Valid(); }
};

Culprit FindCulprit(int thread, ino_t pid_namespace, uint64_t address, dev_t device, ino_t inode);

// The inode of a process's pid namespace; 0 when it cannot be told.
ino_t PidNamespaceOf(int pid);

// SIGKILL. False when it has ended already.
bool Kill(const UniqueFd& pidfd);

// Of an open pidfd, as this process numbers it; 0 when it cannot be told.
int PidOf(int pidfd);

}  // namespace forkd
