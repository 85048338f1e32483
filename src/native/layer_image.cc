// A whole memory image as a layer.
#include <algorithm>

#include "addon.h"
#include "io.h"
#include "layer_args.h"

namespace forkd {

namespace {

SysError WriteImage(int source, int target, int zstd_level, const Digest& parent_root,
                    LayerWritten* written) {
  uint64_t image_bytes;
  if (SysError error = RegularSize(source, &image_bytes)) return error;
  LayerWriter writer(target, zstd_level);
  if (SysError error = writer.Begin(image_bytes, parent_root, {&source, 1})) return error;

  // Without a parent there is nothing below that a zero page would have to hide.
  bool zeros_count = parent_root != Digest{};
  std::vector<uint8_t> buffer(kChunkBytes);
  Extent extent;
  for (uint64_t begin = 0; begin < image_bytes; begin += kChunkBytes) {
    uint64_t end = std::min(begin + kChunkBytes, image_bytes);
    if (begin >= extent.end) {
      if (SysError error = NextExtent(source, begin, image_bytes, &extent)) return error;
    }
    uint16_t pages = static_cast<uint16_t>((1u << (end - begin) / kPageBytes) - 1);
    uint16_t data_mask = 0, zero_mask = pages;
    if (extent.begin < end) {
      size_t got;
      if (SysError error = ReadAt(source, buffer.data(), end - begin, begin, &got)) return error;
      if (got < end - begin) return {"pread", EIO};  // the source shrank
      PackNonZero(pages, buffer.data(), &data_mask, &zero_mask);
    }
    if (!zeros_count) zero_mask = 0;
    if (!data_mask && !zero_mask) continue;
    if (SysError error = writer.Add(begin / kChunkBytes, data_mask, zero_mask, buffer.data())) return error;
  }
  return writer.Finish(written);
}

Napi::Value LayerWriteImage(const Napi::CallbackInfo& info) {
  Args args(info);
  int source = args.Fd(0, "source");
  int target = args.Fd(1, "target");
  LayerOptions options(&args, 2);
  args.ToInt(options.Get("chunkBytes"), "chunkBytes", kChunkBytes, kChunkBytes);
  int zstd_level = options.ZstdLevel();
  Digest parent_root = options.ParentRoot(false);
  if (!args.Ok()) return {};

  LayerWritten written;
  if (SysError error = WriteImage(source, target, zstd_level, parent_root, &written)) {
    return ThrowSysError(info.Env(), error);
  }
  return ToObject(info.Env(), written);
}

}  // namespace

void RegisterLayerImage(Napi::Env env, Napi::Object exports) {
  Export<LayerWriteImage>(env, exports, "layerWriteImage");
}

}  // namespace forkd
