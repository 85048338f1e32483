// What a layer file says of itself.
#include <algorithm>

#include "addon.h"
#include "args.h"
#include "layer_index.h"

namespace forkd {

namespace {

struct Totals {
  uint64_t data_pages = 0;
  uint64_t zero_pages = 0;
  uint64_t unique_frames = 0;
  uint64_t shared_frames = 0;
};

Totals Count(const std::vector<IndexEntry>& entries) {
  Totals totals;
  std::vector<uint64_t> offsets;
  for (const IndexEntry& entry : entries) {
    totals.data_pages += static_cast<uint64_t>(std::popcount(entry.data_mask));
    totals.zero_pages += static_cast<uint64_t>(std::popcount(entry.zero_mask));
    if (entry.data_mask) offsets.push_back(entry.offset);
  }
  uint64_t frames = offsets.size();
  std::sort(offsets.begin(), offsets.end());
  offsets.erase(std::unique(offsets.begin(), offsets.end()), offsets.end());
  totals.unique_frames = offsets.size();
  totals.shared_frames = frames - offsets.size();
  return totals;
}

Napi::Value LayerOpen(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Args args(info);
  int fd = args.Fd(0, "fd");
  if (!args.Ok()) return {};

  LayerIndex index;
  if (LayerError error = ReadLayerIndex(fd, &index)) return ThrowLayerError(env, error);
  const LayerHeader& header = index.header;
  Totals totals = Count(index.entries);

  Napi::Object result = Napi::Object::New(env);
  auto number = [&](const char* name, uint64_t value) { result.Set(name, static_cast<double>(value)); };
  result.Set("root", ToHex(header.root));
  if (index.IsBase()) {
    result.Set("parentRoot", env.Null());
  } else {
    result.Set("parentRoot", ToHex(header.parent_root));
  }
  number("imageBytes", header.image_bytes);
  number("chunkBytes", header.chunk_bytes);
  number("entries", header.entry_count);
  number("dataBytes", header.data_bytes);
  number("fileBytes", header.index_offset + header.entry_count * sizeof(IndexEntry));
  number("dataPages", totals.data_pages);
  number("zeroPages", totals.zero_pages);
  number("uniqueFrames", totals.unique_frames);
  number("sharedFrames", totals.shared_frames);
  return result;
}

}  // namespace

void RegisterLayer(Napi::Env env, Napi::Object exports) {
  Export<LayerOpen>(env, exports, "layerOpen");
}

}  // namespace forkd
