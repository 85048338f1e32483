#include "frame_check.h"

#include <algorithm>
#include <atomic>

namespace forkd {

FrameCheck::FrameCheck(std::shared_ptr<ChunkSource> source, int fd, std::span<uint8_t> known)
    : source_(std::move(source)), fd_(fd), known_(known) {
  for (uint64_t chunk = 0; chunk < source_->chunks(); chunk++) {
    for (const ChunkPart& part : source_->Parts(chunk)) {
      // Others are decompressed to be hashed, which whoever reads them back does.
      if (part.codec == kCodecRaw) frames_.push_back({&part, chunk});
    }
  }
  std::sort(frames_.begin(), frames_.end(),
            [](const Frame& a, const Frame& b) { return a.part->offset < b.part->offset; });
}

void FrameCheck::Note(const uint8_t* from, size_t bytes, uint64_t offset) {
  auto frame = std::lower_bound(frames_.begin(), frames_.end(), offset,
                                [](const Frame& one, uint64_t at) { return one.part->offset < at; });
  for (; frame != frames_.end() && frame->part->offset < offset + bytes; ++frame) {
    const ChunkPart& part = *frame->part;
    uint64_t skipped = part.offset - offset;
    // The rest of it comes from elsewhere.
    if (part.stored_bytes > bytes - skipped) continue;
    // What is wrong stays unknown: whoever reads it back says so.
    if (DigestOf(from + skipped, part.stored_bytes) != part.hash) continue;
    std::atomic_ref<uint8_t>(known_[frame->chunk]).store(1, std::memory_order_relaxed);
  }
}

}  // namespace forkd
