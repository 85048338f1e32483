// Which pages differ between two images. What both take from frames with the same hash is equal without being
// read: branches share most of what their common ancestor has.
#include <algorithm>
#include <cstring>
#include <vector>

#include "addon.h"
#include "args.h"
#include "chunk_source.h"

namespace forkd {

namespace {

bool SamePart(const ChunkPart& a, const ChunkPart& b) {
  return a.frame_mask == b.frame_mask && a.used_mask == b.used_mask && a.hash == b.hash;
}

struct Difference {
  uint64_t pages = 0;
  uint64_t chunks = 0;
};

LayerError Compare(const ChunkSource& a, const ChunkSource& b, Difference* found) {
  std::vector<uint8_t> one(kChunkBytes), other(kChunkBytes);
  for (uint64_t chunk = 0; chunk < a.chunks(); chunk++) {
    std::span<const ChunkPart> x = a.Parts(chunk), y = b.Parts(chunk);
    if (std::equal(x.begin(), x.end(), y.begin(), y.end(), SamePart)) continue;
    if (ChunkError error = a.Read(chunk, one.data())) return ToLayerError(error);
    if (ChunkError error = b.Read(chunk, other.data())) return ToLayerError(error);
    uint64_t before = found->pages;
    for (size_t at = 0; at < kChunkBytes; at += kPageBytes) {
      if (memcmp(one.data() + at, other.data() + at, kPageBytes) != 0) found->pages++;
    }
    if (found->pages > before) found->chunks++;
  }
  return {};
}

Napi::Value SourceDiffer(const Napi::CallbackInfo& info) {
  Args args(info);
  std::shared_ptr<ChunkSource> a = FindSource(args.Int(0, "a", 0, INT32_MAX));
  std::shared_ptr<ChunkSource> b = FindSource(args.Int(1, "b", 0, INT32_MAX));
  if (args.Ok() && !a) args.Refuse("a", "the handle of an open source");
  if (args.Ok() && !b) args.Refuse("b", "the handle of an open source");
  if (args.Ok() && a->image_bytes() != b->image_bytes()) args.Refuse("b", "an image of the same size");
  if (!args.Ok()) return {};

  Difference found;
  if (LayerError error = Compare(*a, *b, &found)) return ThrowLayerError(info.Env(), error);
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("pages", static_cast<double>(found.pages));
  result.Set("chunks", static_cast<double>(found.chunks));
  return result;
}

}  // namespace

void RegisterSourceDiff(Napi::Env env, Napi::Object exports) {
  Export<SourceDiffer>(env, exports, "sourceDiffer");
}

}  // namespace forkd
