// The one reader of headers and indexes. A layer file may come from anywhere: nothing in it is believed
// before it is checked.
#include "layer_index.h"

#include <algorithm>
#include <cstring>

#include "io.h"

namespace forkd {

namespace {

// Read a part at a time, which stays in the processor's cache: an index that is wrong at its start is not
// held in memory.
constexpr size_t kEntriesAtOnce = (1 << 16) / sizeof(IndexEntry);

LayerError Wrong(std::string reason) {
  return {{}, std::move(reason)};
}

// Of an image of 16 GiB. A file may have holes, and so claim more than there is memory.
constexpr size_t kEntriesReserved = 1 << 20;

bool AllZero(const Digest& digest) {
  return digest == Digest{};
}

// In the order that gives a cut or foreign file its plain name, before anything that needs arithmetic.
LayerError CheckHeader(const uint8_t* block, const LayerHeader& header, uint64_t file_bytes) {
  if (memcmp(header.magic, kLayerMagic, sizeof header.magic) != 0) return Wrong("not a layer file");
  if (header.version != kLayerVersion) {
    return Wrong("layer version " + std::to_string(header.version) + " is not known");
  }
  if (header.chunk_bytes != kChunkBytes) return Wrong("chunk size is not " + std::to_string(kChunkBytes));
  if (header.image_bytes == 0 || header.image_bytes % kPageBytes != 0 ||
      header.image_bytes > kImageBytesMax) {
    return Wrong("image size is not in whole pages up to 256 GiB");
  }
  if (!IsZero(block + sizeof header, kHeaderBytes - sizeof header))
    return Wrong("header padding is not zero");

  uint64_t chunks = (header.image_bytes + kChunkBytes - 1) / kChunkBytes;
  if (header.entry_count > chunks) return Wrong("more entries than the image has chunks");
  if (header.data_bytes > chunks * kChunkBytes) return Wrong("more data than the image has bytes");
  if (header.index_offset != kHeaderBytes + header.data_bytes) {
    return Wrong("index does not follow the data");
  }
  // No overflow: all three are bounded by now.
  uint64_t expected_bytes = header.index_offset + header.entry_count * sizeof(IndexEntry);
  if (file_bytes < expected_bytes) return Wrong("truncated");
  if (file_bytes > expected_bytes) return Wrong("longer than its header says");
  return {};
}

// Null when the entry is sound.
const char* EntryFault(const LayerHeader& header, const IndexEntry& entry) {
  uint64_t begin = uint64_t{entry.chunk} * kChunkBytes;
  if (begin >= header.image_bytes) return "is past the end of the image";
  uint64_t pages = std::min<uint64_t>((header.image_bytes - begin) / kPageBytes, kPagesPerChunk);
  uint32_t owned = entry.data_mask | entry.zero_mask;
  if (owned == 0) return "owns no page";
  if (owned >> pages) return "owns pages past the end of the image";
  if (entry.data_mask & entry.zero_mask) return "has pages that are both data and zero";

  if (entry.data_mask == 0) {
    bool empty = entry.offset == 0 && entry.stored_bytes == 0 && entry.codec == 0 && AllZero(entry.hash);
    return empty ? nullptr : "has a frame without pages";
  }
  size_t packed = PackedBytes(entry.data_mask);
  if (entry.codec == kCodecRaw ? entry.stored_bytes != packed
                               : entry.stored_bytes == 0 || entry.stored_bytes >= packed) {
    return "has a frame of the wrong size";
  }
  if (entry.codec != kCodecRaw && entry.codec != kCodecZstd) return "has an unknown codec";
  if (entry.offset < kHeaderBytes || entry.offset > header.index_offset ||
      entry.stored_bytes > header.index_offset - entry.offset) {
    return "points outside the data";
  }
  return nullptr;
}

// Hashes the fields that the root covers.
DigestStream RootStream(const LayerHeader& header) {
  DigestStream stream;
  stream.Add(&header, offsetof(LayerHeader, root));
  return stream;
}

}  // namespace

Digest RootOf(const LayerHeader& header, const std::vector<IndexEntry>& entries) {
  DigestStream stream = RootStream(header);
  stream.Add(entries.data(), entries.size() * sizeof(IndexEntry));
  return stream.Finish();
}

LayerError ReadLayerIndex(int fd, LayerIndex* index) {
  uint64_t file_bytes = 0;
  if (SysError error = RegularSize(fd, &file_bytes)) return {error, {}};

  std::vector<uint8_t> block(kHeaderBytes);
  size_t got;
  if (SysError error = ReadAt(fd, block.data(), block.size(), 0, &got)) return {error, {}};
  if (got < block.size()) {
    bool magic = got >= sizeof kLayerMagic && memcmp(block.data(), kLayerMagic, sizeof kLayerMagic) == 0;
    return Wrong(magic ? "truncated" : "not a layer file");
  }
  LayerHeader& header = index->header;
  memcpy(&header, block.data(), sizeof header);
  if (LayerError error = CheckHeader(block.data(), header, file_bytes)) return error;

  // A fault in an entry is reported only when the root says that it was written so: otherwise the file has
  // been damaged, and that is what is to be said. Entries after a fault are hashed but not kept.
  std::string fault;
  DigestStream stream = RootStream(header);
  std::vector<IndexEntry> part(std::min<uint64_t>(header.entry_count, kEntriesAtOnce));
  index->entries.clear();
  // Growing would touch every page of it several times.
  index->entries.reserve(std::min<uint64_t>(header.entry_count, kEntriesReserved));
  for (uint64_t done = 0; done < header.entry_count;) {
    size_t count = std::min<uint64_t>(header.entry_count - done, part.size());
    size_t bytes = count * sizeof(IndexEntry);
    uint8_t* into = reinterpret_cast<uint8_t*>(part.data());
    if (SysError error = ReadAt(fd, into, bytes, header.index_offset + done * sizeof(IndexEntry), &got)) {
      return {error, {}};
    }
    if (got < bytes) return Wrong("truncated");
    stream.Add(into, bytes);
    for (size_t i = 0; i < count && fault.empty(); i++) {
      const char* wrong = EntryFault(header, part[i]);
      if (!wrong && !index->entries.empty() && part[i].chunk <= index->entries.back().chunk) {
        wrong = "is not in the order of chunks";
      }
      if (wrong) {
        fault = "entry " + std::to_string(done + i) + " " + wrong;
      } else {
        index->entries.push_back(part[i]);
      }
    }
    done += count;
  }
  if (stream.Finish() != header.root) return Wrong("root hash does not match");
  if (!fault.empty()) return Wrong(fault);
  return {};
}

}  // namespace forkd
