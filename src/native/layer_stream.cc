// A whole memory image as a layer, as its bytes arrive: there is never a file of it.
#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "addon.h"
#include "chunk_source.h"
#include "handles.h"
#include "io.h"
#include "layer_args.h"

namespace forkd {

namespace {

// Used by one thread at a time, as whoever writes a file is.
class LayerStream {
 public:
  LayerStream(UniqueFd target, int zstd_level, std::shared_ptr<ChunkSource> parent)
      : target_(std::move(target)),
        writer_(target_.Get(), zstd_level),
        parent_(std::move(parent)),
        chunk_(kChunkBytes),
        below_(kChunkBytes) {}

  SysError Begin(uint64_t image_bytes, const Digest& parent_root) {
    image_bytes_ = image_bytes;
    return writer_.Begin(image_bytes, parent_root, {});
  }

  // Chunks may be left out: they are the parent's, or zero.
  LayerError Append(uint64_t first, std::span<const uint8_t> bytes) {
    for (uint64_t chunk = first; !bytes.empty(); chunk++) {
      size_t length = std::min(kChunkBytes, bytes.size());
      memcpy(chunk_.data(), bytes.data(), length);
      if (LayerError error = AddChunk(chunk, length / kPageBytes)) return error;
      bytes = bytes.subspan(length);
      next_ = chunk + 1;
    }
    return {};
  }

  SysError Finish(LayerWritten* written) { return writer_.Finish(written); }

  uint64_t next() const { return next_; }
  uint64_t image_bytes() const { return image_bytes_; }

 private:
  LayerError AddChunk(uint64_t chunk, size_t pages) {
    uint16_t mask = static_cast<uint16_t>((1u << pages) - 1), zeros_below = kWholeChunk;
    if (parent_) {
      if (LayerError error = LeaveOut(chunk, &mask, &zeros_below)) return error;
    }
    uint16_t data_mask, zero_mask;
    PackNonZero(mask, chunk_.data(), &data_mask, &zero_mask);
    // A page of zeros is of use only where it hides another.
    zero_mask &= static_cast<uint16_t>(~zeros_below);
    if (!data_mask && !zero_mask) return {};
    return {writer_.Add(chunk, data_mask, zero_mask, chunk_.data()), {}};
  }

  // Leaves out what is as it is in the parent: the pages of what is then the mask come to the front.
  LayerError LeaveOut(uint64_t chunk, uint16_t* mask, uint16_t* zeros_below) {
    if (parent_->IsZero(chunk)) return {};
    if (ChunkError error = parent_->Read(chunk, below_.data())) return ToLayerError(error);
    *zeros_below = 0;
    uint8_t* to = chunk_.data();
    for (size_t page = 0; page < kPagesPerChunk; page++) {
      const uint8_t* from = chunk_.data() + page * kPageBytes;
      uint16_t bit = static_cast<uint16_t>(1u << page);
      if (!(*mask & bit)) continue;
      if (memcmp(from, below_.data() + page * kPageBytes, kPageBytes) == 0) {
        *mask &= static_cast<uint16_t>(~bit);
        continue;
      }
      if (to != from) memcpy(to, from, kPageBytes);
      to += kPageBytes;
    }
    return {};
  }

  UniqueFd target_;
  LayerWriter writer_;
  std::shared_ptr<ChunkSource> parent_;
  uint64_t image_bytes_ = 0;
  uint64_t next_ = 0;
  std::vector<uint8_t> chunk_, below_;
};

Handles<LayerStream>& Streams() {
  // Never destroyed, as other handles are not.
  static auto* handles = new Handles<LayerStream>;
  return *handles;
}

Napi::Value LayerStreamOpen(const Napi::CallbackInfo& info) {
  Args args(info);
  int target = args.Fd(0, "target");
  uint64_t image_bytes = args.Count(1, "imageBytes");
  LayerOptions options(&args, 2);
  int zstd_level = options.ZstdLevel();
  Digest parent_root = options.ParentRoot(false);
  std::shared_ptr<ChunkSource> parent;
  if (args.Ok() && parent_root != Digest{}) {
    parent = FindSource(args.ToInt(options.Get("parent"), "parent", 1, INT32_MAX));
    if (args.Ok() && !parent) args.Refuse("parent", "the handle of an open source");
  }
  if (!args.Ok()) return {};
  if (parent && parent->image_bytes() != image_bytes) {
    return ThrowSysError(info.Env(), {"image size", EINVAL});
  }

  UniqueFd own(fcntl(target, F_DUPFD_CLOEXEC, 0));
  if (!own.Valid()) return ThrowSysError(info.Env(), SysError::Last("fcntl"));
  auto stream = std::make_shared<LayerStream>(std::move(own), zstd_level, std::move(parent));
  if (SysError error = stream->Begin(image_bytes, parent_root)) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), Streams().Add(std::move(stream)));
}

Napi::Value LayerStreamAppend(const Napi::CallbackInfo& info) {
  Args args(info);
  std::shared_ptr<LayerStream> stream = Streams().Find(args.Int(0, "handle", 0, INT32_MAX));
  uint64_t chunk = args.Count(1, "chunk");
  std::span<uint8_t> bytes = args.Bytes(2, "bytes");
  if (args.Ok() && !stream) args.Refuse("handle", "the handle of an open layer stream");
  if (args.Ok() && (chunk < stream->next() || chunk > stream->image_bytes() / kChunkBytes)) {
    args.Refuse("chunk", "a chunk behind those before");
  }
  if (args.Ok()) {
    uint64_t room = stream->image_bytes() - chunk * kChunkBytes;
    bool fits = bytes.size() == room || (bytes.size() < room && bytes.size() % kChunkBytes == 0);
    if (!fits) args.Refuse("bytes", "whole chunks of the image");
  }
  if (!args.Ok()) return {};

  if (LayerError error = stream->Append(chunk, bytes)) return ThrowLayerError(info.Env(), error);
  return info.Env().Undefined();
}

Napi::Value LayerStreamFinish(const Napi::CallbackInfo& info) {
  Args args(info);
  std::shared_ptr<LayerStream> stream = Streams().Take(args.Int(0, "handle", 0, INT32_MAX));
  if (args.Ok() && !stream) args.Refuse("handle", "the handle of an open layer stream");
  if (!args.Ok()) return {};

  LayerWritten written;
  if (SysError error = stream->Finish(&written)) return ThrowSysError(info.Env(), error);
  return ToObject(info.Env(), written);
}

Napi::Value LayerStreamClose(const Napi::CallbackInfo& info) {
  Args args(info);
  int handle = args.Int(0, "handle", 0, INT32_MAX);
  if (!args.Ok()) return {};
  return Napi::Boolean::New(info.Env(), Streams().Take(handle) != nullptr);
}

}  // namespace

void RegisterLayerStream(Napi::Env env, Napi::Object exports) {
  Export<LayerStreamOpen>(env, exports, "layerStreamOpen");
  Export<LayerStreamAppend>(env, exports, "layerStreamAppend");
  Export<LayerStreamFinish>(env, exports, "layerStreamFinish");
  Export<LayerStreamClose>(env, exports, "layerStreamClose");
}

}  // namespace forkd
