#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "fd.h"
#include "layer_error.h"
#include "layer_format.h"

namespace forkd {

// A frame of one layer, and the pages that are taken from it: those that no newer layer owns.
struct ChunkPart {
  uint64_t offset;
  uint32_t stored_bytes;
  uint16_t frame_mask;  // what the frame holds
  uint16_t used_mask;   // what is taken from it
  uint16_t layer;
  uint16_t codec;
  Digest hash;
};

// Where the chunks of one image come from: the merged table of a chain of layers. Immutable after Open: any
// number of threads read it at once.
class ChunkSource {
 public:
  // `layer_fds`: base first, head last. They are duplicated; the caller's stay the caller's. Checks headers,
  // indexes and that the chain fits together, not the frames: those are checked when they are read.
  static LayerError Open(std::span<const int> layer_fds, std::shared_ptr<ChunkSource>* source);

  uint64_t image_bytes() const { return image_bytes_; }
  uint64_t chunks() const { return chunks_; }
  static constexpr size_t chunk_bytes() { return kChunkBytes; }
  size_t layers() const { return fds_.size(); }
  // Of one chunk inside the image: only the last may be shorter than chunk_bytes().
  size_t ChunkLength(uint64_t chunk) const;

  // No layer has data there. `chunk` < chunks(), here and below.
  bool IsZero(uint64_t chunk) const { return Parts(chunk).empty(); }
  // Reads, decompresses and verifies one chunk into `into` (chunk_bytes()), zeros included. `read_bytes` (may
  // be null) is set to the bytes read from layer files. After an error `into` holds anything.
  ChunkError Read(uint64_t chunk, uint8_t* into, uint64_t* read_bytes = nullptr) const;

  // Newest layer first.
  std::span<const ChunkPart> Parts(uint64_t chunk) const {
    return std::span(parts_).subspan(first_part_[chunk], first_part_[chunk + 1] - first_part_[chunk]);
  }
  // Reads one frame as it is stored and verifies it. `packed` (chunk_bytes()) gets the pages of frame_mask;
  // `stored` (chunk_bytes()) the bytes of the file, and is `packed` itself for a raw frame when null.
  ChunkError ReadFrame(const ChunkPart& part, uint8_t* packed, uint8_t* stored) const;

 private:
  ChunkSource() = default;

  uint64_t image_bytes_ = 0;
  uint64_t chunks_ = 0;
  std::vector<UniqueFd> fds_;
  std::vector<uint32_t> first_part_;  // chunks_ + 1: where the parts of a chunk begin
  std::vector<ChunkPart> parts_;
};

// Sources that JavaScript has opened, by handle. Handles are valid in every thread of the process and are not
// used twice. Null when there is none (any more). Whoever holds the pointer may go on after sourceClose.
std::shared_ptr<ChunkSource> FindSource(int handle);

}  // namespace forkd
