// Free memory of the C heap, given back to the kernel: malloc_trim(3).
#include <malloc.h>

#include "addon.h"

namespace forkd {

namespace {

Napi::Value HeapTrim(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), malloc_trim(0) == 1);
}

}  // namespace

void RegisterHeapTrim(Napi::Env env, Napi::Object exports) {
  Export<HeapTrim>(env, exports, "heapTrim");
}

}  // namespace forkd
