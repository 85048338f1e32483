#include "chunk_filler.h"

#include <algorithm>

#include "io.h"

namespace forkd {

ChunkFiller::ChunkFiller(const ChunkReader& reader, const ImageMemory& memory, PageMap states,
                         FaultStats stats, const Arrivals* arrivals)
    : reader_(reader),
      memory_(memory),
      states_(states),
      stats_(stats),
      arrivals_(arrivals),
      buffer_(new uint8_t[kServedChunkBytes]) {}

ChunkFiller::Result ChunkFiller::Fill(uint64_t chunk, bool take_over, ChunkError* error) {
  int32_t& state = states_[chunk];
  if (std::atomic_ref<int32_t>(state).load(std::memory_order_acquire) == kPresent) return Result::kPresent;
  if (arrivals_ && !reader_.IsZero(chunk)) {
    uint32_t arrival = arrivals_->State(static_cast<uint32_t>(chunk));
    if (arrival == ARRIVAL_AWAY) return Result::kAway;
    if (arrival == ARRIVAL_LOST) {
      *error = {{}, "it could not be fetched"};
      return Result::kFailed;
    }
  }
  Claim claim(state);
  if (claim.Held()) {
    Result result = Load(chunk, error);
    if (result != Result::kFailed) claim.Complete();
    return result;
  }
  if (!take_over) return Result::kBusy;
  Result result = Load(chunk, error);
  // From either: the claim may have been given up meanwhile.
  if (result != Result::kFailed && !Move(state, kFilling, kPresent)) Move(state, kAbsent, kPresent);
  stats_.Add(FaultStats::kTakenOver, 1);
  return result;
}

ChunkFiller::Result ChunkFiller::Load(uint64_t chunk, ChunkError* error) {
  if (reader_.IsZero(chunk)) return Result::kZero;
  uint64_t begin = chunk * kServedChunkBytes;
  size_t bytes = std::min<uint64_t>(kServedChunkBytes, reader_.image_bytes() - begin);
  uint64_t read_bytes = 0;
  *error = reader_.Read(chunk, buffer_.get(), &read_bytes);
  stats_.Add(FaultStats::kReadBytes, static_cast<int64_t>(read_bytes));
  if (*error) return Result::kFailed;
  if (IsZero(buffer_.get(), bytes)) return Result::kZero;
  error->sys = memory_.Put(begin, buffer_.get(), bytes);
  if (*error) return Result::kFailed;
  stats_.Add(FaultStats::kFilled, 1);
  return Result::kFilled;
}

}  // namespace forkd
