#include "chunk_source.h"

#include <fcntl.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "io.h"
#include "layer_index.h"

namespace forkd {

namespace {

// Of each thread that reads chunks: a fault must not pay for allocations.
struct Scratch {
  Scratch() : packed(new uint8_t[kChunkBytes]), stored(new uint8_t[kChunkBytes]), zstd(ZSTD_createDCtx()) {}
  ~Scratch() { ZSTD_freeDCtx(zstd); }

  std::unique_ptr<uint8_t[]> packed;
  std::unique_ptr<uint8_t[]> stored;
  ZSTD_DCtx* zstd;
};

Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

LayerError Misfit(int layer, const char* reason) {
  return {{}, reason, layer};
}

LayerError CheckLink(const LayerIndex& layer, const LayerIndex* parent, int place) {
  if (!parent) return layer.IsBase() ? LayerError{} : Misfit(place, "is not a base");
  if (layer.header.parent_root != parent->header.root) {
    return Misfit(place, "was not made over the layer below it: parent root does not match");
  }
  if (layer.header.image_bytes != parent->header.image_bytes) {
    return Misfit(place, "image size differs from the layer below it");
  }
  return {};
}

// Puts the pages of one frame where they belong in the chunk.
void Scatter(const ChunkPart& part, const uint8_t* packed, uint8_t* chunk) {
  for (uint32_t rest = part.frame_mask; rest; rest &= rest - 1, packed += kPageBytes) {
    int page = std::countr_zero(rest);
    if (part.used_mask >> page & 1) memcpy(chunk + page * kPageBytes, packed, kPageBytes);
  }
}

void ZeroPages(uint32_t mask, uint8_t* chunk) {
  for (uint32_t rest = mask; rest; rest &= rest - 1) {
    memset(chunk + std::countr_zero(rest) * kPageBytes, 0, kPageBytes);
  }
}

}  // namespace

LayerError ChunkSource::Open(std::span<const int> layer_fds, std::shared_ptr<ChunkSource>* result) {
  // Not make_shared: the constructor is private.
  std::shared_ptr<ChunkSource> source(new ChunkSource);
  if (layer_fds.empty()) return {{}, "no layers"};
  if (layer_fds.size() > UINT16_MAX) return {{}, "too many layers"};

  std::vector<LayerIndex> indexes(layer_fds.size());
  for (size_t i = 0; i < layer_fds.size(); i++) {
    int place = static_cast<int>(i);
    UniqueFd fd(fcntl(layer_fds[i], F_DUPFD_CLOEXEC, 0));
    if (!fd.Valid()) return {SysError::Last("fcntl"), {}, place};
    LayerError error = ReadLayerIndex(fd.Get(), &indexes[i]);
    if (!error) error = CheckLink(indexes[i], i > 0 ? &indexes[i - 1] : nullptr, place);
    if (error) {
      error.layer = place;
      return error;
    }
    source->fds_.push_back(std::move(fd));
  }
  source->image_bytes_ = indexes[0].header.image_bytes;
  source->chunks_ = (source->image_bytes_ + kChunkBytes - 1) / kChunkBytes;

  // Every index is sorted: the newest owner of each page is found by going through all of them side by side.
  std::vector<size_t> next(indexes.size(), 0);
  source->first_part_.reserve(source->chunks_ + 1);
  source->parts_.reserve(indexes.back().entries.size());
  for (uint64_t chunk = 0; chunk < source->chunks_; chunk++) {
    source->first_part_.push_back(static_cast<uint32_t>(source->parts_.size()));
    uint32_t owned = 0;
    for (size_t i = indexes.size(); i-- > 0;) {
      const std::vector<IndexEntry>& entries = indexes[i].entries;
      if (next[i] == entries.size() || entries[next[i]].chunk != chunk) continue;
      const IndexEntry& entry = entries[next[i]++];
      uint16_t used = static_cast<uint16_t>(entry.data_mask & ~owned);
      owned |= entry.data_mask | entry.zero_mask;
      if (used == 0) continue;
      source->parts_.push_back({entry.offset, entry.stored_bytes, entry.data_mask, used,
                                static_cast<uint16_t>(i), static_cast<uint16_t>(entry.codec), entry.hash});
    }
  }
  source->first_part_.push_back(static_cast<uint32_t>(source->parts_.size()));
  source->parts_.shrink_to_fit();
  *result = std::move(source);
  return {};
}

size_t ChunkSource::ChunkLength(uint64_t chunk) const {
  return static_cast<size_t>(std::min<uint64_t>(kChunkBytes, image_bytes_ - chunk * kChunkBytes));
}

ChunkError ChunkSource::ReadFrame(const ChunkPart& part, uint8_t* packed, uint8_t* stored) const {
  uint8_t* from_file = part.codec == kCodecRaw ? packed : stored;
  size_t got;
  // Not a mapping of the file: an I/O error or a file that was cut would be a SIGBUS, and pread costs no page
  // faults.
  if (SysError error = ReadAt(fds_[part.layer].Get(), from_file, part.stored_bytes, part.offset, &got)) {
    return {error, nullptr, part.layer};
  }
  if (got < part.stored_bytes) return {{}, "truncated", part.layer};

  size_t packed_bytes = PackedBytes(part.frame_mask);
  if (part.codec == kCodecZstd) {
    ZSTD_DCtx* zstd = ThreadScratch().zstd;
    if (!zstd) return {{"ZSTD_createDCtx", ENOMEM}, nullptr, part.layer};
    if (ZSTD_decompressDCtx(zstd, packed, packed_bytes, stored, part.stored_bytes) != packed_bytes) {
      return {{}, "compressed frame is damaged", part.layer};
    }
  }
  if (DigestOf(packed, packed_bytes) != part.hash) return {{}, "hash mismatch", part.layer};
  return {};
}

ChunkError ChunkSource::Read(uint64_t chunk, uint8_t* into, uint64_t* read_bytes) const {
  Scratch& scratch = ThreadScratch();
  uint64_t read = 0;
  uint32_t filled = 0;
  for (const ChunkPart& part : Parts(chunk)) {
    bool whole = part.used_mask == kWholeChunk;
    uint8_t* packed = whole ? into : scratch.packed.get();
    if (ChunkError error = ReadFrame(part, packed, scratch.stored.get())) return error;
    if (!whole) Scatter(part, packed, into);
    read += part.stored_bytes;
    filled |= part.used_mask;
  }
  ZeroPages(kWholeChunk & ~filled, into);
  if (read_bytes) *read_bytes = read;
  return {};
}

}  // namespace forkd
