#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "error.h"
#include "fd.h"
#include "page.h"

namespace forkd {

// What became of pages that were to be placed into an address space, or woken.
enum class Placed {
  kDone,    // they are there, and so were those that were there before
  kBusy,    // the space is changing: its events must be read first, then it can be tried again
  kGone,    // the process has ended, or runs another program
  kFailed,  // see the error
};

// One userfaultfd: the faults of one address space, which may be another process's. Move-only.
//
// The placing calls never wake: faults that wait for several mappings of one chunk are woken by one Wake.
// They pass over pages that are there already (EEXIST) and pages that are not registered any more (ENOENT).
class Uffd {
 public:
  Uffd() = default;

  // For this process. ENOTSUP when the kernel lacks one of `required` (UFFD_FEATURE_*): Names(missing) says
  // which.
  static SysError Create(uint64_t required, Uffd* made, uint64_t* missing);
  // One that came from another process, made non-blocking. Its features are read from /proc/self/fdinfo.
  static SysError Adopt(UniqueFd fd, Uffd* made);
  // One that came by EVENT_FORK: it has its parent's features.
  static SysError AdoptChild(UniqueFd fd, uint64_t features, Uffd* made);
  // What the kernel has for us.
  static SysError Supported(uint64_t* features);

  static std::vector<std::string> Names(uint64_t features);

  int Get() const { return fd_.Get(); }
  bool Valid() const { return fd_.Valid(); }
  uint64_t features() const { return features_; }

  // `mode`: UFFDIO_REGISTER_MODE_*.
  SysError Register(uint64_t start, uint64_t bytes, uint64_t mode) const;
  SysError Unregister(uint64_t start, uint64_t bytes) const;
  SysError Wake(uint64_t start, uint64_t bytes) const;

  // `skipped` (may be null) counts the bytes of pages that were passed over.
  Placed Copy(uint64_t to, const uint8_t* from, uint64_t bytes, SysError* error,
              uint64_t* skipped = nullptr) const;
  Placed Zero(uint64_t start, uint64_t bytes, SysError* error) const;
  Placed Poison(uint64_t start, uint64_t bytes, SysError* error) const;

  SysError Protect(uint64_t start, uint64_t bytes) const;
  // Wakes as well.
  SysError Unprotect(uint64_t start, uint64_t bytes) const;

  // False when the address space is gone. `address`: a page that is, or was, registered.
  bool Alive(uint64_t address) const;

 private:
  UniqueFd fd_;
  uint64_t features_ = 0;
};

}  // namespace forkd
