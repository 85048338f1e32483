// Memory files: memfd_create(2), seals, holes.
#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>

#include <cstring>

#include "addon.h"
#include "args.h"
#include "error.h"

namespace forkd {

namespace {

Napi::Value MemfdCreate(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string name = args.Text(0, "name");
  bool huge_pages = args.BoolOr(1, "hugePages", false);
  if (!args.Ok()) return {};

  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (huge_pages) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  int fd = memfd_create(name.c_str(), flags);
  if (fd < 0) return ThrowErrno(info.Env(), "memfd_create");
  return Napi::Number::New(info.Env(), fd);
}

int SealFromName(const std::string& name) {
  static constexpr struct {
    const char* name;
    int seal;
  } kSeals[] = {{"grow", F_SEAL_GROW},
                {"shrink", F_SEAL_SHRINK},
                {"write", F_SEAL_WRITE},
                {"future_write", F_SEAL_FUTURE_WRITE},
                {"seal", F_SEAL_SEAL}};
  for (const auto& entry : kSeals) {
    if (name == entry.name) return entry.seal;
  }
  return 0;
}

Napi::Value MemfdSeal(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  int seals = 0;
  for (const std::string& name : args.Texts(1, "seals")) {
    int seal = SealFromName(name);
    if (seal == 0) args.Refuse("seals", "'grow', 'shrink', 'write', 'future_write' or 'seal'");
    seals |= seal;
  }
  if (!args.Ok()) return {};

  if (fcntl(fd, F_ADD_SEALS, seals) != 0) return ThrowErrno(info.Env(), "fcntl");
  return info.Env().Undefined();
}

Napi::Value MemfdPunch(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  uint64_t offset = args.Count(1, "offset");
  uint64_t bytes = args.Count(2, "bytes");
  if (!args.Ok()) return {};

  int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  int result;
  do {
    result = fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (result != 0 && errno == EINTR);
  if (result != 0) return ThrowErrno(info.Env(), "fallocate");
  return info.Env().Undefined();
}

}  // namespace

void RegisterMemfd(Napi::Env env, Napi::Object exports) {
  Export<MemfdCreate>(env, exports, "memfdCreate");
  Export<MemfdSeal>(env, exports, "memfdSeal");
  Export<MemfdPunch>(env, exports, "memfdPunch");
}

}  // namespace forkd
