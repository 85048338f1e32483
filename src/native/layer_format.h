#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "digest.h"
#include "page.h"

// The layer file, version 1. docs/reference/snapshot-format.md specifies it; the bytes are little endian, as
// is every machine that this is compiled for.
namespace forkd {

static_assert(std::endian::native == std::endian::little);

constexpr size_t kPagesPerChunk = 4;  // a bit each in the masks, which have room for 16
constexpr size_t kChunkBytes = kPagesPerChunk * kPageBytes;
constexpr uint16_t kWholeChunk = (1u << kPagesPerChunk) - 1;  // the mask of all its pages
// 256 GiB: what is kept in memory for an image grows with its size, and a damaged header must not choose it.
constexpr uint64_t kImageBytesMax = uint64_t{256} << 30;

constexpr char kLayerMagic[8] = {'F', 'O', 'R', 'K', 'D', 'L', 'Y', 'R'};
constexpr uint32_t kLayerVersion = 2;
// Frames begin here; the bytes after the header's fields are zero.
constexpr uint64_t kHeaderBytes = 4096;

struct LayerHeader {
  char magic[8];
  uint32_t version;
  uint32_t chunk_bytes;
  uint64_t image_bytes;
  uint64_t index_offset;  // = kHeaderBytes + data_bytes
  uint64_t entry_count;
  uint64_t data_bytes;
  Digest parent_root;  // all zero: a base
  Digest root;         // of the fields before it, then the index
};
static_assert(sizeof(LayerHeader) == 112 && offsetof(LayerHeader, root) == 80);

constexpr uint32_t kCodecRaw = 0;
constexpr uint32_t kCodecZstd = 1;

// What a layer owns of one chunk. The frame holds the pages of data_mask, packed in page order.
struct IndexEntry {
  uint32_t chunk;
  uint16_t data_mask;
  uint16_t zero_mask;
  uint64_t offset;
  uint32_t stored_bytes;
  uint32_t codec;
  Digest hash;  // of the packed pages, uncompressed; all zero without a frame
};
static_assert(sizeof(IndexEntry) == 56 && offsetof(IndexEntry, hash) == 24);

constexpr size_t PackedBytes(uint16_t mask) {
  return static_cast<size_t>(std::popcount(mask)) * kPageBytes;
}

}  // namespace forkd
