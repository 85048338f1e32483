// Claims and settles chunks of a page map for JavaScript.
#include "page_map.h"

#include "addon.h"
#include "args.h"

namespace forkd {

namespace {

Napi::Value ChunkClaim(const Napi::CallbackInfo& info) {
  Args args(info);
  PageMap map = args.Int32s(0, "map");
  uint64_t index = args.Count(1, "index");
  if (args.Ok() && index >= map.size()) args.Refuse("index", "an index inside the map");
  if (!args.Ok()) return {};

  return Napi::Boolean::New(info.Env(), Move(map[index], kAbsent, kFilling));
}

Napi::Value ChunkSettle(const Napi::CallbackInfo& info) {
  Args args(info);
  PageMap map = args.Int32s(0, "map");
  uint64_t index = args.Count(1, "index");
  bool present = args.Bool(2, "present");
  if (args.Ok() && index >= map.size()) args.Refuse("index", "an index inside the map");
  if (!args.Ok()) return {};

  return Napi::Boolean::New(info.Env(), Move(map[index], kFilling, present ? kPresent : kAbsent));
}

}  // namespace

void RegisterPageMap(Napi::Env env, Napi::Object exports) {
  Export<ChunkClaim>(env, exports, "chunkClaim");
  Export<ChunkSettle>(env, exports, "chunkSettle");
}

}  // namespace forkd
