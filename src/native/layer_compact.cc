// One base instead of a chain.
#include "addon.h"
#include "chunk_source.h"
#include "layer_args.h"

namespace forkd {

namespace {

LayerError CompactChunk(const ChunkSource& source, uint64_t chunk, uint8_t* packed, uint8_t* stored,
                        LayerWriter* writer) {
  std::span<const ChunkPart> parts = source.Parts(chunk);
  if (parts.empty()) return {};
  const ChunkPart& first = parts.front();
  if (parts.size() == 1 && first.used_mask == first.frame_mask) {
    if (ChunkError error = source.ReadFrame(first, packed, stored)) return ToLayerError(error);
    const uint8_t* bytes = first.codec == kCodecRaw ? packed : stored;
    return {writer->AddStored(chunk, first.frame_mask, first.hash, first.codec, bytes, first.stored_bytes),
            {}};
  }
  if (ChunkError error = source.Read(chunk, packed)) return ToLayerError(error);
  uint16_t data_mask, zero_mask;
  PackNonZero(kWholeChunk, packed, &data_mask, &zero_mask);
  return {data_mask ? writer->Add(chunk, data_mask, 0, packed) : SysError{}, {}};
}

LayerError Compact(std::span<const int> layers, int target, int zstd_level, LayerWritten* written) {
  std::shared_ptr<ChunkSource> source;
  if (LayerError error = ChunkSource::Open(layers, &source)) return error;
  LayerWriter writer(target, zstd_level);
  if (SysError error = writer.Begin(source->image_bytes(), Digest{}, layers)) return {error, {}};
  std::vector<uint8_t> packed(kChunkBytes), stored(kChunkBytes);
  for (uint64_t chunk = 0; chunk < source->chunks(); chunk++) {
    if (LayerError error = CompactChunk(*source, chunk, packed.data(), stored.data(), &writer)) return error;
  }
  return {writer.Finish(written), {}};
}

Napi::Value LayerCompact(const Napi::CallbackInfo& info) {
  Args args(info);
  std::vector<int> layers = args.Fds(0, "layers");
  int target = args.Fd(1, "target");
  LayerOptions options(&args, 2);
  int zstd_level = options.ZstdLevel();
  if (!args.Ok()) return {};

  LayerWritten written;
  if (LayerError error = Compact(layers, target, zstd_level, &written)) {
    return ThrowLayerError(info.Env(), error);
  }
  return ToObject(info.Env(), written);
}

}  // namespace

void RegisterLayerCompact(Napi::Env env, Napi::Object exports) {
  Export<LayerCompact>(env, exports, "layerCompact");
}

}  // namespace forkd
