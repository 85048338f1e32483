#pragma once

#include <sys/types.h>

#include <cstdint>
#include <vector>

#include "error.h"
#include "fd.h"

namespace forkd {

// Pages that lie next to each other in the image and in the process.
struct PageRun {
  uint64_t page;  // of the image
  uint64_t count;
  uint64_t address;  // in the process
};

// What another process has changed of a memory file: the anonymous pages of its private mappings. The process
// must not run meanwhile; that it lives is checked, that it stands still is not.
class PrivatePages {
 public:
  // `scan` false: /proc/PID/pagemap even where PAGEMAP_SCAN is to be had.
  SysError List(pid_t pid, int memfd, bool scan);
  uint64_t image_bytes() const { return image_bytes_; }
  // In the order of the image. Zero pages and pages in swap are listed too.
  const std::vector<PageRun>& Runs() const { return runs_; }
  // To be asked after the pages were read: a process that ended meanwhile has no pages, which looks like no
  // changes.
  SysError Confirm() const;
  // `failed`, or ESRCH when the process has ended, which is then the reason.
  SysError Reason(SysError failed) const;

 private:
  struct Mapping {
    uint64_t begin;  // addresses
    uint64_t end;
    uint64_t offset;  // in the file, bytes
    bool operator==(const Mapping&) const = default;
  };

  SysError ReadMappings(std::vector<Mapping>* mappings) const;
  SysError Scan(int pagemap, const Mapping& mapping);
  SysError ReadEntries(int pagemap, const Mapping& mapping);
  void AddRun(const Mapping& mapping, uint64_t begin, uint64_t end);
  bool Ended() const;

  UniqueFd pidfd_;
  UniqueFd folder_;  // /proc/PID: of this process, even when the number is used again
  uint64_t device_ = 0;
  uint64_t inode_ = 0;
  uint64_t image_bytes_ = 0;
  std::vector<Mapping> mappings_;
  std::vector<PageRun> runs_;
};

}  // namespace forkd
