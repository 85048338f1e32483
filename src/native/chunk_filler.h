#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "arrivals.h"
#include "chunk_reader.h"
#include "fault_stats.h"
#include "image_memory.h"
#include "page_map.h"
#include "regions.h"

namespace forkd {

// Puts chunks of an image into its memory, for one thread: it has the buffer in which a chunk is read and
// verified before anyone can see it.
class ChunkFiller {
 public:
  // `arrivals`: of an image that is still being fetched, whose chunks are its first items; null otherwise.
  ChunkFiller(const ChunkReader& reader, const ImageMemory& memory, PageMap states, FaultStats stats,
              const Arrivals* arrivals);

  enum class Result {
    kFilled,   // by this call
    kZero,     // so it was left a hole
    kPresent,  // it was there
    kBusy,     // another thread is filling it
    kAway,     // it has not been fetched yet
    kFailed,   // see the error; the chunk is absent again
  };
  // `take_over`: fill it even if another thread says that it is doing so. That thread may have ended, or be
  // stuck. Two fillers of one chunk do no harm: both write the same verified bytes, and of the two ends of
  // the claim the second changes nothing.
  Result Fill(uint64_t chunk, bool take_over, ChunkError* error);

 private:
  Result Load(uint64_t chunk, ChunkError* error);

  const ChunkReader& reader_;
  const ImageMemory& memory_;
  PageMap states_;
  FaultStats stats_;
  const Arrivals* arrivals_;
  std::unique_ptr<uint8_t[]> buffer_;
};

}  // namespace forkd
