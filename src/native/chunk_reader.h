#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "fd.h"
#include "layer_error.h"

namespace forkd {

// Bytes of a chunk. src/contract/page-map.ts says why.
constexpr size_t kServedChunkBytes = 16384;

// Where the chunks of one image come from. Any number of threads read it at once.
class ChunkReader {
 public:
  virtual ~ChunkReader() = default;
  virtual uint64_t image_bytes() const = 0;
  // Known to be zero without reading it. A chunk that is not known to be zero may still be.
  virtual bool IsZero(uint64_t chunk) const = 0;
  // A whole chunk, verified; past the end of the image it is zero. After an error `into` holds anything.
  // `read_bytes` is set to what that took from storage.
  virtual ChunkError Read(uint64_t chunk, uint8_t* into, uint64_t* read_bytes) const = 0;

  uint64_t chunks() const { return (image_bytes() + kServedChunkBytes - 1) / kServedChunkBytes; }
};

// What sourceOpen gave this handle to; null when there is none (any more).
std::shared_ptr<ChunkReader> MakeSourceReader(int handle);

// A plain file that is the image, not verified. EINVAL when it is no regular file of whole pages.
SysError OpenFileReader(int fd, std::shared_ptr<ChunkReader>* reader);

}  // namespace forkd
