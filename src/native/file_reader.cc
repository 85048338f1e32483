// A plain file as an image: for tests, benchmarks and images that came from elsewhere.
#include <fcntl.h>

#include <cstring>

#include "chunk_reader.h"
#include "io.h"
#include "uffd.h"

namespace forkd {

namespace {

class FileReader : public ChunkReader {
 public:
  FileReader(UniqueFd fd, uint64_t bytes) : fd_(std::move(fd)), bytes_(bytes) {}

  uint64_t image_bytes() const override { return bytes_; }

  // Asking for holes costs as much as reading them.
  bool IsZero(uint64_t) const override { return false; }

  ChunkError Read(uint64_t chunk, uint8_t* into, uint64_t* read_bytes) const override {
    uint64_t begin = chunk * kServedChunkBytes;
    size_t wanted = begin + kServedChunkBytes <= bytes_ ? kServedChunkBytes : bytes_ - begin;
    size_t got;
    if (SysError error = ReadAt(fd_.Get(), into, wanted, begin, &got)) return {error};
    if (got < wanted) return {{}, "the file has become shorter"};
    memset(into + got, 0, kServedChunkBytes - got);
    *read_bytes = got;
    return {};
  }

 private:
  UniqueFd fd_;
  uint64_t bytes_;
};

}  // namespace

SysError OpenFileReader(int fd, std::shared_ptr<ChunkReader>* reader) {
  uint64_t bytes;
  if (SysError error = RegularSize(fd, &bytes)) return error;
  if (bytes == 0 || bytes % kPageBytes != 0) return {"fstat", EINVAL};
  UniqueFd own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own.Valid()) return SysError::Last("fcntl");
  *reader = std::make_shared<FileReader>(std::move(own), bytes);
  return {};
}

}  // namespace forkd
