// BLAKE3 for JavaScript: of memory, and of files.
#include <atomic>
#include <memory>

#include "addon.h"
#include "args.h"
#include "digest.h"
#include "error.h"
#include "io.h"
#include "thread_call.h"

namespace forkd {

namespace {

constexpr size_t kDigestReadBytes = 1024 * 1024;

struct FileDigest {
  void Read(int fd) {
    std::unique_ptr<uint8_t[]> buffer(new uint8_t[kDigestReadBytes]);
    for (size_t done = kDigestReadBytes; done == kDigestReadBytes && !stopped; bytes += done) {
      error = ReadAt(fd, buffer.get(), kDigestReadBytes, bytes, &done);
      if (error) return;
      stream.Add(buffer.get(), done);
    }
  }

  DigestStream stream;
  uint64_t bytes = 0;
  SysError error;
  std::atomic<bool> stopped{false};
};

Napi::Value Blake3(const Napi::CallbackInfo& info) {
  Args args(info);
  std::span<uint8_t> data = args.Bytes(0, "data");
  if (!args.Ok()) return {};
  return Napi::String::New(info.Env(), ToHex(DigestOf(data.data(), data.size())));
}

Napi::Value FdBlake3(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  if (!args.Ok()) return {};

  auto file = std::make_shared<FileDigest>();
  ThreadCall call;
  call.work = [=] { file->Read(fd); };
  call.finish = [=](Napi::Env env) -> Napi::Value {
    if (file->error) return ThrowSysError(env, file->error);
    Napi::Object result = Napi::Object::New(env);
    result.Set("blake3", ToHex(file->stream.Finish()));
    result.Set("bytes", static_cast<double>(file->bytes));
    return result;
  };
  call.stop = [=] { file->stopped = true; };
  return ThreadCall::Start(info.Env(), {}, std::move(call));
}

}  // namespace

void RegisterDigest(Napi::Env env, Napi::Object exports) {
  Export<Blake3>(env, exports, "blake3");
  Export<FdBlake3>(env, exports, "fdBlake3");
}

}  // namespace forkd
