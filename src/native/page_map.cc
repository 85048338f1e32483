// Claims and fills chunks of a page map from a plain file.
#include "page_map.h"

#include <algorithm>
#include <vector>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "io.h"

namespace forkd {

namespace {

// Copies chunks from a file into the image's memfd at the same offset.
class Filler {
 public:
  Filler(int source, uint64_t source_bytes, int memfd, size_t chunk_bytes)
      : source_(source), source_bytes_(source_bytes), memfd_(memfd), buffer_(chunk_bytes) {}

  SysError Fill(uint64_t chunk, uint64_t* written) {
    uint64_t begin = chunk * buffer_.size();
    // Past its end the source counts as zero.
    uint64_t end = std::min(begin + buffer_.size(), source_bytes_);
    if (begin >= end) return {};

    if (begin >= extent_.end) {
      if (SysError error = NextExtent(source_, begin, source_bytes_, &extent_)) return error;
    }
    if (extent_.begin >= end) return {};  // a hole

    size_t wanted = end - begin;
    size_t got;
    if (SysError error = ReadAt(source_, buffer_.data(), wanted, begin, &got)) return error;
    if (got < wanted) return {"pread", EIO};  // the source shrank: what is missing must not become zeros
    if (IsZero(buffer_.data(), got)) return {};
    *written += got;
    return WriteAt(memfd_, buffer_.data(), got, begin);
  }

 private:
  int source_;
  uint64_t source_bytes_;
  int memfd_;
  std::vector<uint8_t> buffer_;
  Extent extent_;  // the run of data found last: holes between chunks are asked for once
};

Napi::Value ChunkClaim(const Napi::CallbackInfo& info) {
  Args args(info);
  PageMap map = args.Int32s(0, "map");
  uint64_t index = args.Count(1, "index");
  if (args.Ok() && index >= map.size()) args.Refuse("index", "an index inside the map");
  if (!args.Ok()) return {};

  return Napi::Boolean::New(info.Env(), Move(map[index], kAbsent, kFilling));
}

Napi::Value ChunkSettle(const Napi::CallbackInfo& info) {
  Args args(info);
  PageMap map = args.Int32s(0, "map");
  uint64_t index = args.Count(1, "index");
  bool present = args.Bool(2, "present");
  if (args.Ok() && index >= map.size()) args.Refuse("index", "an index inside the map");
  if (!args.Ok()) return {};

  return Napi::Boolean::New(info.Env(), Move(map[index], kFilling, present ? kPresent : kAbsent));
}

Napi::Value ChunksFill(const Napi::CallbackInfo& info) {
  constexpr int kPageBytes = 4096;
  constexpr int kChunkBytesMax = 64 << 20;  // one buffer of this size is allocated a call
  Args args(info);
  PageMap map = args.Int32s(0, "map");
  uint64_t first = args.Count(1, "first");
  uint64_t count = args.Count(2, "count");
  int chunk_bytes = args.Int(3, "chunkBytes", kPageBytes, kChunkBytesMax);
  int source = args.Fd(4, "source");
  int memfd = args.Fd(5, "memfd");
  if (args.Ok() && (first > map.size() || count > map.size() - first)) {
    args.Refuse("count", "a range inside the map");
  }
  if (!args.Ok()) return {};

  uint64_t source_bytes;
  if (SysError error = RegularSize(source, &source_bytes)) return ThrowSysError(info.Env(), error);

  Filler filler(source, source_bytes, memfd, static_cast<size_t>(chunk_bytes));
  uint64_t filled = 0, skipped = 0, written = 0;
  for (uint64_t chunk = first; chunk < first + count; chunk++) {
    Claim claim(map[chunk]);
    if (!claim.Held()) {
      skipped++;
      continue;
    }
    if (SysError error = filler.Fill(chunk, &written)) return ThrowSysError(info.Env(), error);
    claim.Complete();
    filled++;
  }

  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("filled", static_cast<double>(filled));
  result.Set("skipped", static_cast<double>(skipped));
  result.Set("bytes", static_cast<double>(written));
  return result;
}

}  // namespace

void RegisterPageMap(Napi::Env env, Napi::Object exports) {
  Export<ChunkClaim>(env, exports, "chunkClaim");
  Export<ChunkSettle>(env, exports, "chunkSettle");
  Export<ChunksFill>(env, exports, "chunksFill");
}

}  // namespace forkd
