#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "chunk_source.h"

namespace forkd {

// Which chunks of a layer without ancestors were right when they went into its file: nobody need read those
// back. Any number of threads note what they write.
class FrameCheck {
 public:
  // `fd` is written; `source` knows its index, which is not written any more. `known`: a byte for each chunk
  // of the image, set to 1.
  FrameCheck(std::shared_ptr<ChunkSource> source, int fd, std::span<uint8_t> known);

  int fd() const { return fd_; }
  // These bytes are in the file from `offset` on.
  void Note(const uint8_t* from, size_t bytes, uint64_t offset);

 private:
  struct Frame {
    const ChunkPart* part;
    uint64_t chunk;
  };

  const std::shared_ptr<ChunkSource> source_;
  const int fd_;
  const std::span<uint8_t> known_;
  std::vector<Frame> frames_;  // by offset; equal chunks have one frame
};

}  // namespace forkd
