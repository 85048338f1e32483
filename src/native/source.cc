// Sources by handle, and filling an image from one.
#include <algorithm>
#include <map>
#include <mutex>
#include <set>

#include "addon.h"
#include "args.h"
#include "chunk_source.h"
#include "io.h"
#include "page_map.h"

namespace forkd {

namespace {

// Of the process, as descriptors are: a worker is handed the number.
struct Registry {
  std::mutex mutex;
  std::map<int, std::shared_ptr<ChunkSource>> sources;
  int next = 1;
};

Registry& Sources() {
  // Never destroyed: workers may be at it while the process exits.
  static Registry& registry = *new Registry;
  return registry;
}

std::shared_ptr<ChunkSource> SourceArg(Args* args, size_t i) {
  std::shared_ptr<ChunkSource> source = FindSource(args->Int(i, "handle", 0, INT32_MAX));
  if (!source) args->Refuse("handle", "the handle of an open source");
  return source;
}

Napi::Value SourceOpen(const Napi::CallbackInfo& info) {
  Args args(info);
  std::vector<int> layers = args.Fds(0, "layers");
  if (!args.Ok()) return {};

  std::shared_ptr<ChunkSource> source;
  if (LayerError error = ChunkSource::Open(layers, &source)) return ThrowLayerError(info.Env(), error);
  Registry& registry = Sources();
  std::lock_guard lock(registry.mutex);
  int handle = registry.next++;
  registry.sources.emplace(handle, std::move(source));
  return Napi::Number::New(info.Env(), handle);
}

Napi::Value SourceClose(const Napi::CallbackInfo& info) {
  Args args(info);
  int handle = args.Int(0, "handle", 0, INT32_MAX);
  if (!args.Ok()) return {};

  std::shared_ptr<ChunkSource> source;  // freed after the lock: that takes a while for a large image
  Registry& registry = Sources();
  {
    std::lock_guard lock(registry.mutex);
    auto found = registry.sources.find(handle);
    if (found != registry.sources.end()) {
      source = std::move(found->second);
      registry.sources.erase(found);
    }
  }
  return Napi::Boolean::New(info.Env(), source != nullptr);
}

Napi::Value SourceInfo(const Napi::CallbackInfo& info) {
  Args args(info);
  std::shared_ptr<ChunkSource> source = SourceArg(&args, 0);
  if (!args.Ok()) return {};

  uint64_t zero_chunks = 0, stored_bytes = 0;
  std::set<std::pair<uint16_t, uint64_t>> seen;
  for (uint64_t chunk = 0; chunk < source->chunks(); chunk++) {
    if (source->IsZero(chunk)) zero_chunks++;
    for (const ChunkPart& part : source->Parts(chunk)) {
      if (seen.emplace(part.layer, part.offset).second) stored_bytes += part.stored_bytes;
    }
  }
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("imageBytes", static_cast<double>(source->image_bytes()));
  result.Set("chunkBytes", static_cast<double>(source->chunk_bytes()));
  result.Set("chunks", static_cast<double>(source->chunks()));
  result.Set("layers", static_cast<double>(source->layers()));
  result.Set("zeroChunks", static_cast<double>(zero_chunks));
  result.Set("storedBytes", static_cast<double>(stored_bytes));
  return result;
}

Napi::Value SourceRead(const Napi::CallbackInfo& info) {
  Args args(info);
  std::shared_ptr<ChunkSource> source = SourceArg(&args, 0);
  uint64_t chunk = args.Count(1, "chunk");
  std::span<uint8_t> into = args.Bytes(2, "into");
  if (args.Ok() && chunk >= source->chunks()) args.Refuse("chunk", "a chunk of the image");
  if (args.Ok() && into.size() != kChunkBytes) args.Refuse("into", "a Uint8Array of one chunk");
  if (!args.Ok()) return {};

  uint64_t read_bytes;
  if (ChunkError error = source->Read(chunk, into.data(), &read_bytes)) {
    return ThrowLayerError(info.Env(), ToLayerError(error));
  }
  return Napi::Number::New(info.Env(), static_cast<double>(read_bytes));
}

// Fills chunks of the image's memfd.
class Filler {
 public:
  Filler(const ChunkSource& source, int memfd, std::span<int64_t> stats)
      : source_(source), memfd_(memfd), stats_(stats), buffer_(kChunkBytes) {}

  LayerError Fill(int32_t& state, uint64_t chunk) {
    Claim claim(state);
    if (!claim.Held()) {
      skipped++;
      return {};
    }
    uint64_t read = 0, length = 0;
    if (!source_.IsZero(chunk)) {
      if (ChunkError error = source_.Read(chunk, buffer_.data(), &read)) return ToLayerError(error);
      length = source_.ChunkLength(chunk);
      if (SysError error = WriteAt(memfd_, buffer_.data(), length, chunk * kChunkBytes)) return {error, {}};
    }
    claim.Complete();
    filled++;
    read_bytes += read;
    written += length;
    Count(0, 1);
    Count(1, read);
    Count(2, length);
    return {};
  }

  uint64_t filled = 0, skipped = 0, read_bytes = 0, written = 0;

 private:
  void Count(size_t i, uint64_t value) {
    if (stats_.empty()) return;
    std::atomic_ref<int64_t>(stats_[i]).fetch_add(static_cast<int64_t>(value), std::memory_order_relaxed);
  }

  const ChunkSource& source_;
  int memfd_;
  std::span<int64_t> stats_;
  std::vector<uint8_t> buffer_;
};

Napi::Value SourceFill(const Napi::CallbackInfo& info) {
  constexpr size_t kStats = 3;
  Args args(info);
  std::shared_ptr<ChunkSource> source = SourceArg(&args, 0);
  PageMap map = args.Int32s(1, "states");
  uint64_t first = args.Count(2, "first");
  uint64_t count = args.Count(3, "count");
  int memfd = args.Fd(4, "memfd");
  std::span<int64_t> stats = info[5].IsUndefined() ? std::span<int64_t>() : args.Int64s(5, "stats");
  if (args.Ok() && !info[5].IsUndefined() && stats.size() < kStats) args.Refuse("stats", "three counters");
  if (args.Ok() && (first > map.size() || count > map.size() - first)) {
    args.Refuse("count", "a range inside the map");
  }
  if (args.Ok() && map.size() != source->chunks()) args.Refuse("states", "a map of the source's image");
  if (!args.Ok()) return {};

  Filler filler(*source, memfd, stats);
  for (uint64_t chunk = first; chunk < first + count; chunk++) {
    if (LayerError error = filler.Fill(map[chunk], chunk)) return ThrowLayerError(info.Env(), error);
  }
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("filled", static_cast<double>(filler.filled));
  result.Set("skipped", static_cast<double>(filler.skipped));
  result.Set("bytes", static_cast<double>(filler.written));
  result.Set("readBytes", static_cast<double>(filler.read_bytes));
  return result;
}

}  // namespace

std::shared_ptr<ChunkSource> FindSource(int handle) {
  Registry& registry = Sources();
  std::lock_guard lock(registry.mutex);
  auto found = registry.sources.find(handle);
  return found == registry.sources.end() ? nullptr : found->second;
}

void RegisterSource(Napi::Env env, Napi::Object exports) {
  Export<SourceOpen>(env, exports, "sourceOpen");
  Export<SourceClose>(env, exports, "sourceClose");
  Export<SourceInfo>(env, exports, "sourceInfo");
  Export<SourceRead>(env, exports, "sourceRead");
  Export<SourceFill>(env, exports, "sourceFill");
}

}  // namespace forkd
