// What a process has changed of its memory image, as a layer.
#include <sys/uio.h>

#include <algorithm>

#include "addon.h"
#include "layer_args.h"
#include "private_pages.h"

namespace forkd {

namespace {

// Pages read by one process_vm_readv. Scattered pages are a vector each, of which a call takes 1024.
constexpr size_t kPagesAtOnce = 512;

// Collects pages in the order of the image, reads them together, and adds the chunks they make up.
class Reader {
 public:
  Reader(pid_t pid, LayerWriter* writer) : pid_(pid), writer_(writer), buffer_(kPagesAtOnce * kPageBytes) {}

  // Whole chunks are read at a time: a new one is begun only when all its pages have room.
  SysError Add(uint64_t page, uint64_t address) {
    uint64_t chunk = page / kPagesPerChunk;
    if (chunks_.empty() || chunks_.back().chunk != chunk) {
      if (pages_ + kPagesPerChunk > kPagesAtOnce) {
        if (SysError error = Flush()) return error;
      }
      chunks_.push_back({chunk, 0});
    }
    chunks_.back().mask |= static_cast<uint16_t>(1u << page % kPagesPerChunk);
    pages_++;
    if (!remote_.empty()) {
      iovec& last = remote_.back();
      if (reinterpret_cast<uint64_t>(last.iov_base) + last.iov_len == address) {
        last.iov_len += kPageBytes;
        return {};
      }
    }
    remote_.push_back({reinterpret_cast<void*>(address), kPageBytes});
    return {};
  }

  SysError Flush() {
    if (SysError error = ReadPages()) return error;
    uint8_t* packed = buffer_.data();
    for (const Owned& owned : chunks_) {
      uint16_t data_mask, zero_mask;
      PackNonZero(owned.mask, packed, &data_mask, &zero_mask);
      if (SysError error = writer_->Add(owned.chunk, data_mask, zero_mask, packed)) return error;
      packed += PackedBytes(owned.mask);
    }
    chunks_.clear();
    remote_.clear();
    pages_ = 0;
    return {};
  }

 private:
  struct Owned {
    uint64_t chunk;
    uint16_t mask;
  };

  SysError ReadPages() {
    if (pages_ == 0) return {};
    iovec local = {buffer_.data(), pages_ * kPageBytes};
    ssize_t got = process_vm_readv(pid_, &local, 1, remote_.data(), remote_.size(), 0);
    if (got < 0) return SysError::Last("process_vm_readv");
    // It stops at the first page that cannot be read.
    if (static_cast<size_t>(got) < local.iov_len) return {"process_vm_readv", EFAULT};
    return {};
  }

  pid_t pid_;
  LayerWriter* writer_;
  std::vector<uint8_t> buffer_;
  std::vector<Owned> chunks_;
  std::vector<iovec> remote_;
  size_t pages_ = 0;
};

struct ProcessRequest {
  pid_t pid;
  int memfd;
  int target;
  int zstd_level;
  bool scan;
  Digest parent_root;
};

SysError WriteProcess(const ProcessRequest& request, LayerWritten* written, uint64_t* dirty_bytes) {
  PrivatePages pages;
  if (SysError error = pages.List(request.pid, request.memfd, request.scan)) return error;
  LayerWriter writer(request.target, request.zstd_level);
  uint64_t image_bytes = pages.image_bytes();
  if (SysError error = writer.Begin(image_bytes, request.parent_root, {&request.memfd, 1})) return error;

  Reader reader(request.pid, &writer);
  for (const PageRun& run : pages.Runs()) {
    *dirty_bytes += run.count * kPageBytes;
    for (uint64_t i = 0; i < run.count; i++) {
      if (SysError error = reader.Add(run.page + i, run.address + i * kPageBytes)) return pages.Reason(error);
    }
  }
  if (SysError error = reader.Flush()) return pages.Reason(error);
  // Before the header is written: the layer of a process that has ended meanwhile must not come to be.
  if (SysError error = pages.Confirm()) return error;
  return writer.Finish(written);
}

Napi::Value LayerWriteProcess(const Napi::CallbackInfo& info) {
  Args args(info);
  ProcessRequest request;
  request.pid = args.Int(0, "pid", 1, INT32_MAX);
  request.memfd = args.Fd(1, "memfd");
  request.target = args.Fd(2, "target");
  LayerOptions options(&args, 3);
  request.zstd_level = options.ZstdLevel();
  request.parent_root = options.ParentRoot(true);
  Napi::Value scan = options.Get("scan");
  request.scan = scan.IsUndefined() || args.ToBool(scan, "scan");
  if (!args.Ok()) return {};

  LayerWritten written;
  uint64_t dirty_bytes = 0;
  if (SysError error = WriteProcess(request, &written, &dirty_bytes)) {
    return ThrowSysError(info.Env(), error);
  }
  Napi::Object result = ToObject(info.Env(), written);
  result.Set("dirtyBytes", static_cast<double>(dirty_bytes));
  return result;
}

}  // namespace

void RegisterLayerProcess(Napi::Env env, Napi::Object exports) {
  Export<LayerWriteProcess>(env, exports, "layerWriteProcess");
}

}  // namespace forkd
