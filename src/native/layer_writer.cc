#include "layer_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <cstring>

#include "io.h"
#include "layer_index.h"

namespace forkd {

namespace {

// Frames are written together: a system call for each would cost more than hashing it.
constexpr size_t kBufferBytes = 1 << 20;

// What compression must save of a frame, as a divisor: decompressing costs every reader more than an eighth
// of the reading.
constexpr size_t kSavingMin = 8;

SysError CheckDistinct(int target, std::span<const int> sources) {
  struct stat to, from;
  if (fstat(target, &to) != 0) return SysError::Last("fstat");
  for (int source : sources) {
    if (fstat(source, &from) != 0) return SysError::Last("fstat");
    if (from.st_dev == to.st_dev && from.st_ino == to.st_ino) return {"ftruncate", EINVAL};
  }
  return {};
}

}  // namespace

LayerWriter::LayerWriter(int target, int zstd_level)
    : target_(target), zstd_level_(zstd_level), flushed_(kHeaderBytes) {
  buffer_.reserve(kBufferBytes + kChunkBytes);
}

LayerWriter::~LayerWriter() {
  ZSTD_freeCCtx(zstd_);
  // What was written is of no use, and on a full file system its room is wanted back.
  if (begun_ && ftruncate(target_, 0) != 0) return;
}

SysError LayerWriter::Begin(uint64_t image_bytes, const Digest& parent_root, std::span<const int> sources) {
  if (image_bytes == 0 || image_bytes % kPageBytes != 0 || image_bytes > kImageBytesMax) {
    return {"image size", EINVAL};
  }
  if (SysError error = CheckDistinct(target_, sources)) return error;
  if (zstd_level_ > 0) {
    zstd_ = ZSTD_createCCtx();
    if (!zstd_) return {"ZSTD_createCCtx", ENOMEM};
    ZSTD_CCtx_setParameter(zstd_, ZSTD_c_compressionLevel, zstd_level_);
    compressed_.resize(kChunkBytes);
  }
  if (ftruncate(target_, 0) != 0) return SysError::Last("ftruncate");
  begun_ = true;
  memcpy(header_.magic, kLayerMagic, sizeof header_.magic);
  header_.version = kLayerVersion;
  header_.chunk_bytes = kChunkBytes;
  header_.image_bytes = image_bytes;
  header_.parent_root = parent_root;
  return {};
}

SysError LayerWriter::Add(uint64_t chunk, uint16_t data_mask, uint16_t zero_mask, const uint8_t* packed) {
  IndexEntry entry = {};
  entry.chunk = static_cast<uint32_t>(chunk);
  entry.data_mask = data_mask;
  entry.zero_mask = zero_mask;
  if (data_mask) {
    size_t packed_bytes = PackedBytes(data_mask);
    entry.hash = DigestOf(packed, packed_bytes);
    if (!Reuse(&entry)) {
      const uint8_t* stored = packed;
      size_t stored_bytes = packed_bytes;
      if (zstd_) {
        size_t room = packed_bytes - packed_bytes / kSavingMin;
        size_t size = ZSTD_compress2(zstd_, compressed_.data(), room, packed, packed_bytes);
        if (!ZSTD_isError(size)) {
          stored = compressed_.data();
          stored_bytes = size;
        }
      }
      uint32_t codec = stored == packed ? kCodecRaw : kCodecZstd;
      if (SysError error = Append(&entry, stored, static_cast<uint32_t>(stored_bytes), codec)) return error;
    }
  }
  entries_.push_back(entry);
  return {};
}

SysError LayerWriter::AddStored(uint64_t chunk, uint16_t data_mask, const Digest& hash, uint32_t codec,
                                const uint8_t* stored, uint32_t stored_bytes) {
  IndexEntry entry = {};
  entry.chunk = static_cast<uint32_t>(chunk);
  entry.data_mask = data_mask;
  entry.hash = hash;
  if (!Reuse(&entry)) {
    if (SysError error = Append(&entry, stored, stored_bytes, codec)) return error;
  }
  entries_.push_back(entry);
  return {};
}

SysError LayerWriter::Finish(LayerWritten* written) {
  if (SysError error = Flush()) return error;
  header_.index_offset = flushed_;
  header_.data_bytes = flushed_ - kHeaderBytes;
  header_.entry_count = entries_.size();
  header_.root = RootOf(header_, entries_);

  const uint8_t* index = reinterpret_cast<const uint8_t*>(entries_.data());
  size_t index_bytes = entries_.size() * sizeof(IndexEntry);
  if (SysError error = WriteAt(target_, index, index_bytes, header_.index_offset)) return error;
  std::vector<uint8_t> block(kHeaderBytes, 0);
  memcpy(block.data(), &header_, sizeof header_);
  if (SysError error = WriteAt(target_, block.data(), block.size(), 0)) return error;
  if (fsync(target_) != 0) return SysError::Last("fsync");

  begun_ = false;
  *written = {header_.root, header_.entry_count, header_.data_bytes, header_.index_offset + index_bytes};
  return {};
}

size_t LayerWriter::DigestHash::operator()(const Digest& digest) const {
  size_t value;
  memcpy(&value, digest.data(), sizeof value);
  return value;
}

bool LayerWriter::Reuse(IndexEntry* entry) const {
  auto found = frames_.find(entry->hash);
  if (found == frames_.end()) return false;
  const IndexEntry& first = entries_[found->second];
  entry->offset = first.offset;
  entry->stored_bytes = first.stored_bytes;
  entry->codec = first.codec;
  return true;
}

SysError LayerWriter::Append(IndexEntry* entry, const uint8_t* stored, uint32_t stored_bytes,
                             uint32_t codec) {
  entry->offset = flushed_ + buffer_.size();
  entry->stored_bytes = stored_bytes;
  entry->codec = codec;
  frames_.emplace(entry->hash, entries_.size());
  buffer_.insert(buffer_.end(), stored, stored + stored_bytes);
  return buffer_.size() >= kBufferBytes ? Flush() : SysError{};
}

SysError LayerWriter::Flush() {
  if (SysError error = WriteAt(target_, buffer_.data(), buffer_.size(), flushed_)) return error;
  // The disk begins now, while the next frames are hashed. Only a hint: whether it was written is what fsync
  // says.
  sync_file_range(target_, static_cast<off_t>(flushed_), static_cast<off_t>(buffer_.size()),
                  SYNC_FILE_RANGE_WRITE);
  flushed_ += buffer_.size();
  buffer_.clear();
  return {};
}

void PackNonZero(uint16_t mask, uint8_t* packed, uint16_t* data_mask, uint16_t* zero_mask) {
  *data_mask = *zero_mask = 0;
  const uint8_t* from = packed;
  uint8_t* to = packed;
  for (uint32_t rest = mask; rest; rest &= rest - 1, from += kPageBytes) {
    uint16_t page = static_cast<uint16_t>(rest & -rest);
    if (IsZero(from, kPageBytes)) {
      *zero_mask |= page;
      continue;
    }
    *data_mask |= page;
    if (to != from) memcpy(to, from, kPageBytes);
    to += kPageBytes;
  }
}

}  // namespace forkd
