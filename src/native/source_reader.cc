// A chain of layers as an image.
#include "chunk_reader.h"
#include "chunk_source.h"

namespace forkd {

namespace {

static_assert(ChunkSource::chunk_bytes() == kServedChunkBytes);

class SourceReader : public ChunkReader {
 public:
  explicit SourceReader(std::shared_ptr<ChunkSource> source) : source_(std::move(source)) {}

  uint64_t image_bytes() const override { return source_->image_bytes(); }
  bool IsZero(uint64_t chunk) const override { return source_->IsZero(chunk); }
  ChunkError Read(uint64_t chunk, uint8_t* into, uint64_t* read_bytes) const override {
    return source_->Read(chunk, into, read_bytes);
  }

 private:
  std::shared_ptr<ChunkSource> source_;
};

}  // namespace

std::shared_ptr<ChunkReader> MakeSourceReader(int handle) {
  std::shared_ptr<ChunkSource> source = FindSource(handle);
  return source ? std::make_shared<SourceReader>(std::move(source)) : nullptr;
}

}  // namespace forkd
