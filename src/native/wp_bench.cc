// The synthetic memory of `forkd wp-bench`: this process maps a memfd, and copies it as it is at one instant.
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "addon.h"
#include "args.h"
#include "instant_copy.h"
#include "native_thread.h"
#include "uffd_ioctl.h"

namespace forkd {

namespace {

constexpr int kBenchCopiersMax = 64;
constexpr uint8_t kFill = 0x42;

double NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

class Mapping {
 public:
  explicit Mapping(size_t bytes) : bytes_(bytes) {}
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (memory_) munmap(memory_, bytes_);
  }

  SysError Map(int memfd, bool is_private) {
    void* made =
        mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, is_private ? MAP_PRIVATE : MAP_SHARED, memfd, 0);
    if (made == MAP_FAILED) return SysError::Last("mmap");
    memory_ = static_cast<uint8_t*>(made);
    return {};
  }

  uint8_t* data() const { return memory_; }
  uint64_t address() const { return reinterpret_cast<uint64_t>(memory_); }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* memory_ = nullptr;
  size_t bytes_;
};

// A thread that stores into page after page, all over the memory, for as long as it is let.
class Writer {
 public:
  explicit Writer(const Mapping& memory) : memory_(memory) {}
  ~Writer() { Stop(); }

  SysError Start() {
    return thread_.Start([this] { Run(); });
  }
  void Stop() {
    stopped_ = true;
    thread_.Join();
  }
  uint64_t stores() const { return stores_; }
  double longest_ms() const { return longest_ms_; }

 private:
  void Run() {
    size_t pages = memory_.bytes() / kPageBytes;
    uint64_t random = 1;
    while (!stopped_) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      size_t page = (random >> 33) % pages;
      double began = NowMs();
      *const_cast<volatile uint8_t*>(memory_.data() + page * kPageBytes + random % kPageBytes) = kFill + 1;
      longest_ms_ = std::max(longest_ms_, NowMs() - began);
      stores_++;
    }
  }

  const Mapping& memory_;
  std::atomic<bool> stopped_{false};
  uint64_t stores_ = 0;
  double longest_ms_ = 0;
  NativeThread thread_;
};

struct Measurement {
  size_t bytes;
  int memfd;
  int target;
  int copiers;
  bool is_private;
  bool writer;
};

struct Figures {
  double arm_ms, copy_ms, finalize_ms;
  uint64_t pages, by_fault, by_copiers;
  uint64_t stores;
  double longest_store_ms;
};

SysError Measure(const Measurement& request, Figures* figures, uint64_t* missing) {
  Mapping memory(request.bytes);
  if (SysError error = memory.Map(request.memfd, request.is_private)) return error;
  memset(memory.data(), kFill, request.bytes);
  uint64_t needed = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM;
  Uffd uffd;
  if (SysError error = Uffd::Create(needed, &uffd, missing)) return error;
  uint64_t from = memory.address();
  if (SysError error = uffd.Register(from, memory.bytes(), UFFDIO_REGISTER_MODE_WP)) return error;
  int own = dup(uffd.Get());
  if (own < 0) return SysError::Last("dup");
  Uffd lent;
  if (SysError error = Uffd::Adopt(UniqueFd(own), &lent)) return error;
  std::shared_ptr<InstantCopy> copy;
  if (SysError error =
          InstantCopy::Make(std::move(lent), getpid(), {{from, memory.bytes(), 0}}, memory.bytes(), &copy)) {
    return error;
  }

  // What is stored from the arming on must not be in the copy: the writer starts there.
  Writer writer(memory);
  double began = NowMs();
  SysError error = copy->Arm();
  double armed = NowMs();
  if (!error && request.writer) error = writer.Start();
  if (!error) error = copy->Copy(request.target, static_cast<unsigned>(request.copiers));
  double copied = NowMs();
  if (error) return error;
  if ((error = uffd.Unregister(from, memory.bytes()))) return error;
  if (fsync(request.target) != 0) return SysError::Last("fsync");
  double finalized = NowMs();
  writer.Stop();

  *figures = {armed - began,          copied - armed,           finalized - copied, copy->pages(),
              copy->pages_by_fault(), copy->pages_by_copiers(), writer.stores(),    writer.longest_ms()};
  return {};
}

Napi::Value WpBench(const Napi::CallbackInfo& info) {
  Args args(info);
  Measurement request;
  request.bytes = args.Count(0, "bytes");
  request.memfd = args.Fd(1, "memfd");
  request.target = args.Fd(2, "target");
  Napi::Object options = args.Object(3, "options");
  request.is_private = args.ToBool(options.Get("isPrivate"), "isPrivate");
  request.writer = args.ToBool(options.Get("writer"), "writer");
  request.copiers = args.ToInt(options.Get("copiers"), "copiers", 1, kBenchCopiersMax);
  if (args.Ok() && (request.bytes == 0 || request.bytes % kPageBytes != 0))
    args.Refuse("bytes", "whole pages");
  if (!args.Ok()) return {};

  Figures figures = {};
  uint64_t missing = 0;
  if (SysError error = Measure(request, &figures, &missing)) return ThrowSysError(info.Env(), error);
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("armMs", figures.arm_ms);
  result.Set("copyMs", figures.copy_ms);
  result.Set("finalizeMs", figures.finalize_ms);
  result.Set("pages", static_cast<double>(figures.pages));
  result.Set("byFault", static_cast<double>(figures.by_fault));
  result.Set("byCopiers", static_cast<double>(figures.by_copiers));
  result.Set("stores", static_cast<double>(figures.stores));
  result.Set("longestStoreMs", figures.longest_store_ms);
  return result;
}

}  // namespace

void RegisterWpBench(Napi::Env env, Napi::Object exports) {
  Export<WpBench>(env, exports, "wpBench");
}

}  // namespace forkd
