// What JavaScript sees of copies of an instant.
#include <fcntl.h>

#include <algorithm>

#include "addon.h"
#include "args.h"
#include "handles.h"
#include "instant_copy.h"
#include "private_pages.h"
#include "region_args.h"

namespace forkd {

namespace {

constexpr int kCopiersMax = 64;
constexpr uint64_t kImageMax = uint64_t{1} << 47;

// Never destroyed: exit(3) runs static destructors while workers still copy.
Handles<InstantCopy>& Copies() {
  static auto* handles = new Handles<InstantCopy>;
  return *handles;
}

// Before anything is protected: the kernel lists a page that was protected before it was touched as swapped,
// and so as the process's own.
SysError PrivateRuns(pid_t pid, int memfd, std::vector<Regions::Region>* runs) {
  PrivatePages pages;
  if (SysError error = pages.List(pid, memfd, true)) return error;
  runs->clear();
  for (const PageRun& run : pages.Runs()) {
    runs->push_back({run.address, run.count * kPageBytes, run.page * kPageBytes});
  }
  return {};
}

Napi::Value InstantArm(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "uffd");
  int pid = args.Int(1, "pid", 1, INT32_MAX);
  std::vector<Regions::Region> runs;
  if (args.Ok()) runs = ToRegions(args, info[2], kImageMax);
  int memfd = info[3].IsUndefined() ? -1 : args.Fd(3, "privateOf");
  if (!args.Ok()) return {};

  UniqueFd own(fcntl(fd, F_DUPFD_CLOEXEC, 0));
  if (!own.Valid()) return ThrowErrno(info.Env(), "fcntl");
  uint64_t image_bytes = 0;
  for (const Regions::Region& run : runs) image_bytes = std::max(image_bytes, run.offset + run.bytes);
  Uffd uffd;
  SysError error = Uffd::Adopt(std::move(own), &uffd);
  if (!error && memfd >= 0) error = PrivateRuns(pid, memfd, &runs);
  std::shared_ptr<InstantCopy> copy;
  if (!error) error = InstantCopy::Make(std::move(uffd), pid, runs, image_bytes, &copy);
  if (!error) error = copy->Arm();
  if (error) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), Copies().Add(std::move(copy)));
}

Napi::Value InstantTake(const Napi::CallbackInfo& info) {
  Args args(info);
  auto copy = Copies().Find(args.Int(0, "copy", 1, INT32_MAX));
  if (!copy) args.Refuse("copy", "a handle of instantArm that is not closed");
  int target = args.Fd(1, "target");
  int copiers = args.Int(2, "copiers", 1, kCopiersMax);
  if (!args.Ok()) return {};

  if (SysError error = copy->Copy(target, static_cast<unsigned>(copiers))) {
    return ThrowSysError(info.Env(), error);
  }
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("pages", static_cast<double>(copy->pages()));
  result.Set("byFault", static_cast<double>(copy->pages_by_fault()));
  result.Set("byCopiers", static_cast<double>(copy->pages_by_copiers()));
  return result;
}

Napi::Value InstantClose(const Napi::CallbackInfo& info) {
  Args args(info);
  int handle = args.Int(0, "copy", 1, INT32_MAX);
  if (!args.Ok()) return {};
  return Napi::Boolean::New(info.Env(), Copies().Take(handle) != nullptr);
}

}  // namespace

void RegisterInstant(Napi::Env env, Napi::Object exports) {
  Export<InstantArm>(env, exports, "instantArm");
  Export<InstantTake>(env, exports, "instantTake");
  Export<InstantClose>(env, exports, "instantClose");
}

}  // namespace forkd
