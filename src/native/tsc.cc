// The processor's time stamp counter against the system's clock. Emulated guests read the host's counter, so
// their kernel must be told how fast it runs: on a busy host it cannot find out by itself.
#include <time.h>
#include <x86intrin.h>

#include "addon.h"
#include "error.h"

namespace forkd {

namespace {

constexpr int kReadings = 32;

int64_t MonotonicNs() {
  timespec now = {};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000LL + now.tv_nsec;
}

// The pair whose clock reading took the fewest ticks: the others were interrupted in between.
Napi::Value TscSample(const Napi::CallbackInfo& info) {
  uint64_t narrowest = UINT64_MAX;
  uint64_t tsc = 0;
  int64_t ns = 0;
  for (int i = 0; i < kReadings; i++) {
    uint64_t before = __rdtsc();
    int64_t now = MonotonicNs();
    uint64_t width = __rdtsc() - before;
    if (width >= narrowest) continue;
    narrowest = width;
    tsc = before + width / 2;
    ns = now;
  }
  Napi::Object sample = Napi::Object::New(info.Env());
  sample.Set("ticks", Napi::BigInt::New(info.Env(), tsc));
  sample.Set("ns", Napi::BigInt::New(info.Env(), ns));
  return sample;
}

}  // namespace

void RegisterTsc(Napi::Env env, Napi::Object exports) {
  Export<TscSample>(env, exports, "tscSample");
}

}  // namespace forkd
