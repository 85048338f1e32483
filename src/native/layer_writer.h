#pragma once

#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "error.h"
#include "layer_format.h"

typedef struct ZSTD_CCtx_s ZSTD_CCtx;

namespace forkd {

struct LayerWritten {
  Digest root;
  uint64_t entries = 0;
  uint64_t data_bytes = 0;
  uint64_t file_bytes = 0;
};

// Writes one layer file: frames as they come, then the index, then the header, without which the rest is not
// a layer. Unless Finish succeeds, the file is left empty.
class LayerWriter {
 public:
  LayerWriter(int target, int zstd_level);
  ~LayerWriter();
  LayerWriter(const LayerWriter&) = delete;
  LayerWriter& operator=(const LayerWriter&) = delete;

  // Empties the target: EINVAL when it is one of `sources`.
  SysError Begin(uint64_t image_bytes, const Digest& parent_root, std::span<const int> sources);

  // Chunks come in ascending order, and own at least one page each. `packed` holds the pages of data_mask.
  SysError Add(uint64_t chunk, uint16_t data_mask, uint16_t zero_mask, const uint8_t* packed);
  // A frame as another layer stores it, already verified.
  SysError AddStored(uint64_t chunk, uint16_t data_mask, const Digest& hash, uint32_t codec,
                     const uint8_t* stored, uint32_t stored_bytes);

  SysError Finish(LayerWritten* written);

 private:
  // The beginning of a digest is as good a hash as any.
  struct DigestHash {
    size_t operator()(const Digest& digest) const;
  };

  SysError Append(IndexEntry* entry, const uint8_t* stored, uint32_t stored_bytes, uint32_t codec);
  bool Reuse(IndexEntry* entry) const;
  SysError Flush();

  int target_;
  int zstd_level_;
  ZSTD_CCtx* zstd_ = nullptr;
  bool begun_ = false;
  LayerHeader header_ = {};
  std::vector<IndexEntry> entries_;
  std::unordered_map<Digest, size_t, DigestHash> frames_;  // to the entry that brought the frame
  std::vector<uint8_t> buffer_;                            // frames that are not yet written
  uint64_t flushed_;                                       // where the buffer goes in the file
  std::vector<uint8_t> compressed_;
};

// Moves the pages of `mask` that are not zero to the front of `packed`, in which they lie in page order, and
// divides the mask.
void PackNonZero(uint16_t mask, uint8_t* packed, uint16_t* data_mask, uint16_t* zero_mask);

}  // namespace forkd
