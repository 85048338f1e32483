#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "fd.h"
#include "uffd.h"

namespace forkd {

// The memfd of an image, as its fillers write it: through a shared mapping of our own, with UFFDIO_COPY.
//
// Whoever maps the memfd finds a page as soon as the page cache has it, and gets no fault to wait on. So a
// page must appear there with its content, at once. UFFDIO_COPY does that. A store into a shared mapping does
// not: it makes a page of zeros first. pwrite(2) nearly does (the page is locked while it is copied), but not
// when the copying is interrupted inside a page; and a memfd that is sealed with F_SEAL_FUTURE_WRITE refuses
// it, where a mapping made before goes on. 64 KiB cost the same both ways.
class ImageMemory {
 public:
  // Maps the whole memfd. It must have its size already, and must not be sealed against writing yet.
  static SysError Open(int memfd, std::shared_ptr<ImageMemory>* memory);
  ~ImageMemory();
  ImageMemory(const ImageMemory&) = delete;
  ImageMemory& operator=(const ImageMemory&) = delete;

  uint64_t bytes() const { return bytes_; }
  dev_t device() const { return device_; }
  ino_t inode() const { return inode_; }

  // `offset` and `bytes` are of whole pages inside the memfd. Pages that are there with another content get
  // this one.
  SysError Put(uint64_t offset, const uint8_t* from, size_t bytes) const;
  // False when the page at `offset` is a hole, which nobody has read or written yet.
  bool HasPage(uint64_t offset) const;

 private:
  ImageMemory() = default;

  UniqueFd fd_;
  Uffd uffd_;
  uint8_t* mapping_ = nullptr;
  uint64_t bytes_ = 0;
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

}  // namespace forkd
