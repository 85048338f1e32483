#pragma once

#include <cstdint>
#include <vector>

#include "error.h"
#include "fd.h"

namespace forkd {

// One message of a userfaultfd, decoded.
struct UffdEvent {
  enum Kind {
    kFault,   // a thread waits at `address`
    kFork,    // a child's own userfaultfd, `child`; the parent waits until the message is read, as below
    kRemap,   // [start, end) has become [to, to + end - start)
    kRemove,  // the pages of [start, end) are about to be dropped (MADV_DONTNEED)
    kUnmap,   // [start, end) is about to be unmapped
  };
  Kind kind = kFault;
  uint64_t address = 0;      // of the page
  uint64_t fault_flags = 0;  // UFFD_PAGEFAULT_FLAG_*
  int thread = 0;            // as its own pid namespace numbers it; 0 without UFFD_FEATURE_THREAD_ID
  uint64_t start = 0;
  uint64_t end = 0;
  uint64_t to = 0;
  UniqueFd child;
};

// Appends all the messages that wait, in order. The kernel hands out faults before anything else. An error is
// of a later read: what was appended is good. EMFILE: a child's descriptor could not be made, and its parent
// goes on waiting.
SysError ReadUffdEvents(int uffd, std::vector<UffdEvent>* events);

}  // namespace forkd
