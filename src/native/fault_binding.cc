// What JavaScript sees of the fault server: memories, servers, and the thread that serves.
#include <fcntl.h>
#include <linux/userfaultfd.h>

#include "addon.h"
#include "args.h"
#include "arrivals.h"
#include "error.h"
#include "fault_server.h"
#include "handles.h"
#include "region_args.h"
#include "thread_call.h"

namespace forkd {

namespace {

// Never destroyed: exit(3) runs static destructors while workers still serve.
Handles<ImageMemory>& Memories() {
  static auto* handles = new Handles<ImageMemory>;
  return *handles;
}

Handles<FaultServer>& Servers() {
  static auto* handles = new Handles<FaultServer>;
  return *handles;
}

std::shared_ptr<FaultServer> ServerOf(Args& args, size_t i) {
  auto server = Servers().Find(args.Int(i, "server", 1, INT32_MAX));
  if (!server) args.Refuse("server", "a handle of faultOpen that is not closed");
  return server;
}

Napi::Value UffdFeatures(const Napi::CallbackInfo& info) {
  uint64_t features;
  if (SysError error = Uffd::Supported(&features)) return ThrowSysError(info.Env(), error);
  Napi::Array names = Napi::Array::New(info.Env());
  for (const std::string& name : Uffd::Names(features)) names.Set(names.Length(), name);
  return names;
}

Napi::Value MemoryOpen(const Napi::CallbackInfo& info) {
  Args args(info);
  int memfd = args.Fd(0, "memfd");
  if (!args.Ok()) return {};
  std::shared_ptr<ImageMemory> memory;
  if (SysError error = ImageMemory::Open(memfd, &memory)) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), Memories().Add(std::move(memory)));
}

Napi::Value MemoryClose(const Napi::CallbackInfo& info) {
  Args args(info);
  int handle = args.Int(0, "memory", 1, INT32_MAX);
  if (!args.Ok()) return {};
  return Napi::Boolean::New(info.Env(), Memories().Take(handle) != nullptr);
}

SysError OpenReader(Args& args, const Napi::Object& options, std::shared_ptr<ChunkReader>* reader) {
  if (options.Get("source").IsUndefined()) {
    int fd = args.ToFd(options.Get("sourceFd"), "sourceFd");
    return args.Ok() ? OpenFileReader(fd, reader) : SysError();
  }
  *reader = MakeSourceReader(args.ToInt(options.Get("source"), "source", 1, INT32_MAX));
  if (!*reader) args.Refuse("source", "the handle of an open source");
  return {};
}

Napi::Value FaultOpen(const Napi::CallbackInfo& info) {
  Args args(info);
  Napi::Object options = args.Object(0, "options");
  int patience_us = args.ToInt(options.Get("patienceUs"), "patienceUs", 0, INT32_MAX);
  std::shared_ptr<ImageMemory> memory;
  if (!options.Get("memory").IsUndefined()) {
    memory = Memories().Find(args.ToInt(options.Get("memory"), "memory", 1, INT32_MAX));
    if (!memory) args.Refuse("memory", "a handle of memoryOpen that is not closed");
  }
  std::shared_ptr<ChunkReader> reader;
  SysError error = OpenReader(args, options, &reader);
  if (!args.Ok()) return {};
  if (error) return ThrowSysError(info.Env(), error);
  if (memory && memory->bytes() < reader->image_bytes()) {
    args.Refuse("memory", "a memory of at least the size of the image");
    return {};
  }
  std::shared_ptr<Arrivals> arrivals;
  if (!options.Get("arrivals").IsUndefined()) {
    arrivals = FindArrivals(args.ToInt(options.Get("arrivals"), "arrivals", 1, INT32_MAX));
    if (!arrivals || arrivals->items() < reader->chunks()) {
      args.Refuse("arrivals", "a handle of arrivalsOpen, with an item for each chunk");
      return {};
    }
  }
  std::shared_ptr<FaultServer> server;
  error = FaultServer::Open(std::move(reader), std::move(memory), int64_t{patience_us} * 1000,
                            std::move(arrivals), &server);
  if (error) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), Servers().Add(std::move(server)));
}

Napi::Value ThrowMissing(Napi::Env env, uint64_t missing) {
  std::string text = "the userfaultfd was made without";
  for (const std::string& name : Uffd::Names(missing)) text += " " + name;
  Napi::Error error = Napi::Error::New(env, text);
  error.Set("code", "ENOTSUP");
  error.ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Value FaultAdopt(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  int fd = args.Fd(1, "uffd");
  std::vector<Regions::Region> regions;
  if (args.Ok()) regions = ToRegions(args, info[2], server->reader().image_bytes());
  int known = info[3].IsUndefined() ? -1 : args.Fd(3, "pidfd");
  if (!args.Ok()) return {};

  UniqueFd own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own.Valid()) return ThrowErrno(info.Env(), "fcntl");
  UniqueFd pidfd;
  if (known >= 0) {
    pidfd = UniqueFd(fcntl(known, F_DUPFD_CLOEXEC, 0));
    if (!pidfd.Valid()) return ThrowErrno(info.Env(), "fcntl");
  }
  Uffd uffd;
  if (SysError error = Uffd::Adopt(std::move(own), &uffd)) return ThrowSysError(info.Env(), error);
  // Someone must be found when a chunk cannot be had; and memory that was given back must not come back full.
  uint64_t required = (known >= 0 ? 0 : UFFD_FEATURE_THREAD_ID) |
                      (uffd.features() & UFFD_FEATURE_EVENT_FORK ? UFFD_FEATURE_THREAD_ID : 0) |
                      (server->memory() ? 0 : UFFD_FEATURE_EVENT_REMOVE);
  if (required & ~uffd.features()) return ThrowMissing(info.Env(), required & ~uffd.features());
  SysError error = server->Adopt(std::move(uffd), Regions(std::move(regions)), std::move(pidfd));
  if (error) return ThrowSysError(info.Env(), error);
  return info.Env().Undefined();
}

FaultServer::Shared SharedOf(Args& args, const FaultServer* server, size_t states, size_t stats,
                             size_t order) {
  FaultServer::Shared shared;
  shared.states = args.Int32s(states, "states");
  shared.stats = FaultStats(args.Int64s(stats, "stats"));
  if (order) shared.order = args.Uint32s(order, "order");
  if (args.Ok() && shared.states.size() < server->reader().chunks()) {
    args.Refuse("states", "a page map of the image");
  }
  return shared;
}

Napi::Value FaultServe(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  FaultServer::Shared shared = SharedOf(args, server.get(), 1, 2, 3);
  if (!args.Ok()) return {};
  if (SysError error = server->Serve(shared)) return ThrowSysError(info.Env(), error);
  return info.Env().Undefined();
}

// The same in a native thread.
Napi::Value FaultServeAside(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  FaultServer::Shared shared = SharedOf(args, server.get(), 1, 2, 3);
  if (!args.Ok()) return {};
  auto error = std::make_shared<SysError>();
  ThreadCall call;
  call.work = [=] { *error = server->Serve(shared); };
  call.finish = [=](Napi::Env env) { return *error ? ThrowSysError(env, *error) : env.Undefined(); };
  call.stop = [=] { server->Stop(); };
  return ThreadCall::Start(info.Env(), {info[1], info[2], info[3]}, std::move(call));
}

std::span<uint32_t> ChunksOf(Args& args, const FaultServer* server, size_t i) {
  std::span<uint32_t> chunks = args.Uint32s(i, "chunks");
  if (args.Ok() && !server->memory()) args.Refuse("server", "a server with a memory");
  for (uint32_t chunk : chunks) {
    if (args.Ok() && chunk >= server->reader().chunks()) args.Refuse("chunks", "chunks of the image");
  }
  return chunks;
}

struct Filled {
  double filled = 0, skipped = 0;
  std::vector<std::pair<uint32_t, ChunkError>> failed;
};

// A damaged image is told by its first few chunks.
constexpr size_t kFailedMax = 16;

void FillAll(FaultServer& server, const FaultServer::Shared& shared, std::span<const uint32_t> chunks,
             Filled* result) {
  ChunkFiller filler(server.reader(), *server.memory(), shared.states, shared.stats, server.arrivals());
  for (uint32_t chunk : chunks) {
    if (server.stopped()) return;
    ChunkError error;
    ChunkFiller::Result done;
    while ((done = filler.Fill(chunk, false, &error)) == ChunkFiller::Result::kAway && !server.stopped()) {
      server.arrivals()->WaitBriefly(chunk);
    }
    switch (done) {
      case ChunkFiller::Result::kFilled:
      case ChunkFiller::Result::kZero:
        result->filled++;
        break;
      case ChunkFiller::Result::kFailed:
        if (result->failed.size() < kFailedMax) result->failed.emplace_back(chunk, error);
        break;
      default:
        result->skipped++;
    }
  }
}

Napi::Value FilledAside(Napi::Env env, const Filled& result) {
  Napi::Object object = Napi::Object::New(env);
  Napi::Array failed = Napi::Array::New(env);
  for (const auto& [chunk, error] : result.failed) {
    Napi::Object one = Napi::Object::New(env);
    one.Set("chunk", chunk);
    ThrowLayerError(env, ToLayerError(error));
    one.Set("error", env.GetAndClearPendingException().Value());
    failed.Set(failed.Length(), one);
  }
  object.Set("filled", result.filled);
  object.Set("skipped", result.skipped);
  object.Set("failed", failed);
  return object;
}

Napi::Value FaultFillAside(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  FaultServer::Shared shared = SharedOf(args, server.get(), 1, 2, 0);
  std::span<uint32_t> chunks = ChunksOf(args, server.get(), 3);
  bool idle = args.Bool(4, "idle");
  if (!args.Ok()) return {};
  auto list = std::make_shared<std::vector<uint32_t>>(chunks.begin(), chunks.end());
  auto result = std::make_shared<Filled>();
  ThreadCall call;
  call.work = [=] { FillAll(*server, shared, *list, result.get()); };
  call.finish = [=](Napi::Env env) { return FilledAside(env, *result); };
  call.stop = [=] { server->Stop(); };
  call.idle = idle;
  return ThreadCall::Start(info.Env(), {info[1], info[2]}, std::move(call));
}

Napi::Value FaultFill(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  FaultServer::Shared shared = SharedOf(args, server.get(), 1, 2, 0);
  std::span<uint32_t> chunks = ChunksOf(args, server.get(), 3);
  if (!args.Ok()) return {};

  ChunkFiller filler(server->reader(), *server->memory(), shared.states, shared.stats, server->arrivals());
  double filled = 0, skipped = 0;
  for (uint32_t chunk : chunks) {
    if (server->stopped()) break;
    ChunkError error;
    switch (filler.Fill(chunk, false, &error)) {
      case ChunkFiller::Result::kFilled:
      case ChunkFiller::Result::kZero:
        filled++;
        break;
      case ChunkFiller::Result::kFailed:
        return ThrowLayerError(info.Env(), ToLayerError(error));
      default:
        skipped++;
    }
  }
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("filled", filled);
  result.Set("skipped", skipped);
  return result;
}

Napi::Value FaultFailures(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  if (!args.Ok()) return {};
  Napi::Array result = Napi::Array::New(info.Env());
  for (const FaultServer::Failure& failure : server->TakeFailures()) {
    Napi::Object one = Napi::Object::New(info.Env());
    one.Set("pid", failure.pid ? Napi::Number::New(info.Env(), failure.pid) : info.Env().Null());
    one.Set("chunk", failure.chunk >= 0 ? Napi::Number::New(info.Env(), static_cast<double>(failure.chunk))
                                        : info.Env().Null());
    one.Set("reason", failure.reason);
    one.Set("outcome", failure.outcome);
    result.Set(result.Length(), one);
  }
  return result;
}

Napi::Value FaultSweep(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  if (!args.Ok()) return {};
  return Napi::Number::New(info.Env(), static_cast<double>(server->Sweep()));
}

Napi::Value FaultStop(const Napi::CallbackInfo& info) {
  Args args(info);
  auto server = ServerOf(args, 0);
  if (!args.Ok()) return {};
  server->Stop();
  return info.Env().Undefined();
}

bool Complete(std::span<int32_t> states) {
  for (int32_t& state : states) {
    if (std::atomic_ref<int32_t>(state).load(std::memory_order_acquire) != kPresent) return false;
  }
  return true;
}

Napi::Value FaultClose(const Napi::CallbackInfo& info) {
  Args args(info);
  int handle = args.Int(0, "server", 1, INT32_MAX);
  auto server = ServerOf(args, 0);
  std::span<int32_t> states = args.Int32s(1, "states");
  bool kill = args.BoolOr(2, "kill", false);
  if (!args.Ok()) return {};
  // What is not filled would read as zeros from then on.
  bool needed = !(server->memory() && Complete(states)) && server->Sweep() > 0;
  if (server->Serving() || (needed && !kill)) return ThrowSysError(info.Env(), {"faultClose", EBUSY});
  if (needed) server->KillAll();
  Servers().Take(handle);
  return info.Env().Undefined();
}

}  // namespace

void RegisterFault(Napi::Env env, Napi::Object exports) {
  Export<UffdFeatures>(env, exports, "uffdFeatures");
  Export<MemoryOpen>(env, exports, "memoryOpen");
  Export<MemoryClose>(env, exports, "memoryClose");
  Export<FaultOpen>(env, exports, "faultOpen");
  Export<FaultAdopt>(env, exports, "faultAdopt");
  Export<FaultServe>(env, exports, "faultServe");
  Export<FaultServeAside>(env, exports, "faultServeAside");
  Export<FaultFill>(env, exports, "faultFill");
  Export<FaultFillAside>(env, exports, "faultFillAside");
  Export<FaultFailures>(env, exports, "faultFailures");
  Export<FaultSweep>(env, exports, "faultSweep");
  Export<FaultStop>(env, exports, "faultStop");
  Export<FaultClose>(env, exports, "faultClose");
}

}  // namespace forkd
