// What JavaScript sees of arrivals.
#include <algorithm>

#include "addon.h"
#include "args.h"
#include "arrivals.h"
#include "error.h"
#include "handles.h"
#include "thread_call.h"

namespace forkd {

namespace {

// Never destroyed: exit(3) runs static destructors while threads still wait.
Handles<Arrivals>& AllArrivals() {
  static auto* handles = new Handles<Arrivals>;
  return *handles;
}

std::shared_ptr<Arrivals> ArrivalsArg(Args& args, size_t i) {
  auto arrivals = FindArrivals(args.Int(i, "arrivals", 1, INT32_MAX));
  if (!arrivals) args.Refuse("arrivals", "a handle of arrivalsOpen that is not closed");
  return arrivals;
}

Napi::Value ArrivalsOpen(const Napi::CallbackInfo& info) {
  Args args(info);
  int items = args.Int(0, "items", 1, INT32_MAX);
  int first_block = args.Int(1, "firstBlock", 0, items);
  int disk = info[2].IsUndefined() ? -1 : args.Fd(2, "disk");
  if (!args.Ok()) return {};
  std::shared_ptr<Arrivals> arrivals;
  SysError error =
      Arrivals::Open(static_cast<uint32_t>(items), static_cast<uint32_t>(first_block), disk, &arrivals);
  if (error) return ThrowSysError(info.Env(), error);
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("statesFd", arrivals->states_fd());
  result.Set("asksFd", arrivals->asks_fd());
  result.Set("handle", AllArrivals().Add(std::move(arrivals)));
  return result;
}

Napi::Value ArrivalsSettle(const Napi::CallbackInfo& info) {
  Args args(info);
  auto arrivals = ArrivalsArg(args, 0);
  std::span<uint32_t> items = args.Uint32s(1, "items");
  int state = args.Int(2, "state", ARRIVAL_AWAY, ARRIVAL_LOST);
  for (uint32_t item : items) {
    if (args.Ok() && item >= arrivals->items()) args.Refuse("items", "items of these arrivals");
  }
  if (!args.Ok()) return {};
  for (uint32_t item : items) arrivals->Settle(item, static_cast<uint32_t>(state));
  return info.Env().Undefined();
}

Napi::Value ArrivalsWhole(const Napi::CallbackInfo& info) {
  Args args(info);
  auto arrivals = ArrivalsArg(args, 0);
  if (!args.Ok()) return {};
  arrivals->SetWhole();
  return info.Env().Undefined();
}

Napi::Value ArrivalsAskedAside(const Napi::CallbackInfo& info) {
  Args args(info);
  auto arrivals = ArrivalsArg(args, 0);
  if (!args.Ok()) return {};
  auto asked = std::make_shared<std::vector<uint32_t>>();
  ThreadCall call;
  call.work = [=] { *asked = arrivals->TakeAsked(); };
  call.finish = [=](Napi::Env env) -> Napi::Value {
    Napi::Uint32Array list = Napi::Uint32Array::New(env, asked->size());
    std::copy(asked->begin(), asked->end(), list.Data());
    return list;
  };
  call.stop = [=] { arrivals->Close(); };
  return ThreadCall::Start(info.Env(), {}, std::move(call));
}

Napi::Value ArrivalsVictims(const Napi::CallbackInfo& info) {
  Args args(info);
  auto arrivals = ArrivalsArg(args, 0);
  if (!args.Ok()) return {};
  Napi::Array list = Napi::Array::New(info.Env());
  for (uint64_t victim : arrivals->TakeVictims()) {
    Napi::Object one = Napi::Object::New(info.Env());
    one.Set("pid", static_cast<uint32_t>(victim));
    one.Set("line", static_cast<uint32_t>(victim >> 32));
    list.Set(list.Length(), one);
  }
  return list;
}

Napi::Value ArrivalsClose(const Napi::CallbackInfo& info) {
  Args args(info);
  int handle = args.Int(0, "arrivals", 1, INT32_MAX);
  if (!args.Ok()) return {};
  auto arrivals = AllArrivals().Take(handle);
  if (arrivals) arrivals->Close();
  return Napi::Boolean::New(info.Env(), arrivals != nullptr);
}

}  // namespace

std::shared_ptr<Arrivals> FindArrivals(int handle) {
  return AllArrivals().Find(handle);
}

void RegisterArrivals(Napi::Env env, Napi::Object exports) {
  Export<ArrivalsOpen>(env, exports, "arrivalsOpen");
  Export<ArrivalsSettle>(env, exports, "arrivalsSettle");
  Export<ArrivalsWhole>(env, exports, "arrivalsWhole");
  Export<ArrivalsAskedAside>(env, exports, "arrivalsAskedAside");
  Export<ArrivalsVictims>(env, exports, "arrivalsVictims");
  Export<ArrivalsClose>(env, exports, "arrivalsClose");
}

}  // namespace forkd
