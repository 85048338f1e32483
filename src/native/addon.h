#pragma once

#include <napi.h>

namespace forkd {

// One per file of bindings; addon.cc calls them for every environment (main thread or worker) that loads the
// addon.
void RegisterFile(Napi::Env env, Napi::Object exports);
void RegisterMemfd(Napi::Env env, Napi::Object exports);
void RegisterPageMap(Napi::Env env, Napi::Object exports);
void RegisterLayer(Napi::Env env, Napi::Object exports);
void RegisterDigest(Napi::Env env, Napi::Object exports);
void RegisterLayerImage(Napi::Env env, Napi::Object exports);
void RegisterLayerProcess(Napi::Env env, Napi::Object exports);
void RegisterLayerStream(Napi::Env env, Napi::Object exports);
void RegisterLayerCompact(Napi::Env env, Napi::Object exports);
void RegisterSource(Napi::Env env, Napi::Object exports);
void RegisterSourceDiff(Napi::Env env, Napi::Object exports);
void RegisterSourceVerify(Napi::Env env, Napi::Object exports);
void RegisterScmRights(Napi::Env env, Napi::Object exports);
void RegisterSpawn(Napi::Env env, Napi::Object exports);
void RegisterPidfd(Napi::Env env, Napi::Object exports);
void RegisterPoll(Napi::Env env, Napi::Object exports);
void RegisterNetns(Napi::Env env, Napi::Object exports);
void RegisterNetlink(Napi::Env env, Napi::Object exports);
void RegisterTsc(Napi::Env env, Napi::Object exports);
void RegisterArrivals(Napi::Env env, Napi::Object exports);
void RegisterFault(Napi::Env env, Napi::Object exports);
void RegisterThreadPriority(Napi::Env env, Napi::Object exports);
void RegisterHeapTrim(Napi::Env env, Napi::Object exports);
void RegisterDatagram(Napi::Env env, Napi::Object exports);
void RegisterSamePages(Napi::Env env, Napi::Object exports);
void RegisterFrames(Napi::Env env, Napi::Object exports);
void RegisterInstant(Napi::Env env, Napi::Object exports);
void RegisterWpBench(Napi::Env env, Napi::Object exports);

template <Napi::Value (*Binding)(const Napi::CallbackInfo&)>
void Export(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<Binding>(env, name));
}

}  // namespace forkd
