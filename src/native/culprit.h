#pragma once

#include <sys/types.h>

#include <cstdint>

#include "fd.h"

namespace forkd {

// The process that one of its threads is a fault of: pidfd and pid. Not valid when it cannot be told for
// sure.
//
// `thread` is what the kernel wrote into the fault: the number of the thread that touched the page, in the
// pid namespace of that thread. So it need not be of the process whose memory it is (process_vm_readv: it may
// be ours), nor mean anything here. It counts only when the process maps `address`, from the file
// `device`:`inode` (inode 0: from anywhere), and is neither this one nor in another pid namespace.
struct Culprit {
  int pid = 0;
  UniqueFd pidfd;
  bool Valid() const { return pidfd.Valid(); }
};

Culprit FindCulprit(int thread, uint64_t address, dev_t device, ino_t inode);

// SIGKILL. False when it has ended already.
bool Kill(const UniqueFd& pidfd);

// Of an open pidfd; 0 when it cannot be told.
int PidOf(const UniqueFd& pidfd);

}  // namespace forkd
