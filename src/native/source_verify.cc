// Reads every chunk of a source: what is damaged, and where.
#include <algorithm>
#include <atomic>
#include <mutex>

#include "addon.h"
#include "args.h"
#include "chunk_source.h"
#include "frames.h"
#include "thread_call.h"

namespace forkd {

namespace {

// Chunks in a row that a thread takes: what is stored lies in parts of an image.
constexpr uint64_t kRowChunks = 64;

class SourceCheck {
 public:
  struct Problem {
    uint64_t chunk;
    ChunkError error;
  };

  // `known`: a byte for each chunk, 1 if it need not be read; or empty.
  SourceCheck(std::shared_ptr<ChunkSource> source, size_t problems_max, std::span<const uint8_t> known)
      : source_(std::move(source)), problems_max_(problems_max), known_(known) {}

  void Run(unsigned threads) {
    InThreads(threads, [this](unsigned) { Work(); });
    std::sort(problems_.begin(), problems_.end(),
              [](const Problem& a, const Problem& b) { return a.chunk < b.chunk; });
  }
  void Stop() { next_ = source_->chunks(); }

  uint64_t read_bytes() const { return read_bytes_; }
  const std::vector<Problem>& problems() const { return problems_; }
  const SysError& error() const { return error_; }

 private:
  void Work() {
    std::unique_ptr<uint8_t[]> into(new uint8_t[ChunkSource::chunk_bytes()]);
    uint64_t read_bytes = 0;
    for (uint64_t row; (row = next_.fetch_add(kRowChunks)) < source_->chunks();) {
      uint64_t end = std::min(row + kRowChunks, source_->chunks());
      for (uint64_t chunk = row; chunk < end; chunk++) {
        if (source_->IsZero(chunk) || (!known_.empty() && known_[chunk] == 1)) continue;
        uint64_t bytes = 0;
        if (ChunkError error = source_->Read(chunk, into.get(), &bytes)) Note(chunk, error);
        read_bytes += bytes;
      }
    }
    read_bytes_ += read_bytes;
  }

  // A disk that fails is a finding; whatever else fails is not about this layer.
  void Note(uint64_t chunk, const ChunkError& error) {
    std::lock_guard lock(mutex_);
    if (error.sys && error.sys.number != EIO) {
      error_ = error.sys;
    } else {
      problems_.push_back({chunk, error});
    }
    if (error_ || problems_.size() >= problems_max_) Stop();
  }

  const std::shared_ptr<ChunkSource> source_;
  const size_t problems_max_;
  const std::span<const uint8_t> known_;
  std::atomic<uint64_t> next_{0};
  std::atomic<uint64_t> read_bytes_{0};
  std::mutex mutex_;
  std::vector<Problem> problems_;
  SysError error_;
};

Napi::Value SourceVerify(const Napi::CallbackInfo& info) {
  Args args(info);
  std::shared_ptr<ChunkSource> source = FindSource(args.Int(0, "handle", 0, INT32_MAX));
  if (!source) args.Refuse("handle", "the handle of an open source");
  int problems_max = args.Int(1, "problemsMax", 1, 1 << 20);
  int threads = args.Int(2, "threads", 1, kFrameThreadsMax);
  std::span<uint8_t> known = args.Bytes(3, "known");
  if (args.Ok() && !known.empty() && known.size() != source->chunks()) {
    args.Refuse("known", "a byte for each chunk, or none");
  }
  if (!args.Ok()) return {};

  auto check = std::make_shared<SourceCheck>(source, static_cast<size_t>(problems_max), known);
  ThreadCall call;
  call.work = [=] { check->Run(static_cast<unsigned>(threads)); };
  call.finish = [=](Napi::Env env) -> Napi::Value {
    if (check->error()) return ThrowSysError(env, check->error());
    Napi::Array problems = Napi::Array::New(env);
    for (const SourceCheck::Problem& problem : check->problems()) {
      Napi::Object one = Napi::Object::New(env);
      one.Set("chunk", static_cast<double>(problem.chunk));
      one.Set("layer", problem.error.layer);
      one.Set("reason", problem.error.Text());
      problems.Set(problems.Length(), one);
    }
    Napi::Object result = Napi::Object::New(env);
    result.Set("readBytes", static_cast<double>(check->read_bytes()));
    result.Set("problems", problems);
    return result;
  };
  call.stop = [=] { check->Stop(); };
  return ThreadCall::Start(info.Env(), {info[3]}, std::move(call));
}

}  // namespace

void RegisterSourceVerify(Napi::Env env, Napi::Object exports) {
  Export<SourceVerify>(env, exports, "sourceVerify");
}

}  // namespace forkd
