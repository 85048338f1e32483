// Entry of the addon. binding.ts is its typed edge and documents every function; the C++ holds no policy.
//
// Nothing here is global per environment: arguments come in, results go out. The two things that outlive a
// call look after themselves: a pidfd watch removes itself by its own cleanup hook (pidfd.cc), and the spawn
// thread belongs to the process (spawn_thread.cc; the library is linked with `-z nodelete`, so a worker's
// exit cannot unmap its code).
#include "addon.h"

static Napi::Object Init(Napi::Env env, Napi::Object exports) {
  forkd::RegisterFile(env, exports);
  forkd::RegisterMemfd(env, exports);
  forkd::RegisterPageMap(env, exports);
  forkd::RegisterLayer(env, exports);
  forkd::RegisterDigest(env, exports);
  forkd::RegisterLayerImage(env, exports);
  forkd::RegisterLayerProcess(env, exports);
  forkd::RegisterLayerStream(env, exports);
  forkd::RegisterLayerCompact(env, exports);
  forkd::RegisterSource(env, exports);
  forkd::RegisterSourceDiff(env, exports);
  forkd::RegisterSourceVerify(env, exports);
  forkd::RegisterScmRights(env, exports);
  forkd::RegisterSpawn(env, exports);
  forkd::RegisterPidfd(env, exports);
  forkd::RegisterPoll(env, exports);
  forkd::RegisterNetns(env, exports);
  forkd::RegisterNetlink(env, exports);
  forkd::RegisterTsc(env, exports);
  forkd::RegisterArrivals(env, exports);
  forkd::RegisterFault(env, exports);
  forkd::RegisterThreadPriority(env, exports);
  forkd::RegisterHeapTrim(env, exports);
  forkd::RegisterDatagram(env, exports);
  forkd::RegisterSamePages(env, exports);
  forkd::RegisterFrames(env, exports);
  forkd::RegisterInstant(env, exports);
  forkd::RegisterWpBench(env, exports);
  return exports;
}

NODE_API_MODULE(forkd_native, Init)
