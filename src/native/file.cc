// What any descriptor or path can do: sizes, positioned reads and writes, locks, atomic renames.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdio>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "io.h"

namespace forkd {

namespace {

Napi::Value FdResize(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  uint64_t bytes = args.Count(1, "bytes");
  if (!args.Ok()) return {};

  if (ftruncate(fd, static_cast<off_t>(bytes)) != 0) return ThrowErrno(info.Env(), "ftruncate");
  return info.Env().Undefined();
}

Napi::Value FdWrite(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  std::span<uint8_t> data = args.Bytes(1, "data");
  uint64_t offset = args.Count(2, "offset");
  if (!args.Ok()) return {};

  if (SysError error = WriteAt(fd, data.data(), data.size(), offset)) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), static_cast<double>(data.size()));
}

Napi::Value FdRead(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  std::span<uint8_t> into = args.Bytes(1, "into");
  uint64_t offset = args.Count(2, "offset");
  if (!args.Ok()) return {};

  size_t done;
  if (SysError error = ReadAt(fd, into.data(), into.size(), offset, &done)) {
    return ThrowSysError(info.Env(), error);
  }
  return Napi::Number::New(info.Env(), static_cast<double>(done));
}

Napi::Value FdSize(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  if (!args.Ok()) return {};

  struct stat st;
  if (fstat(fd, &st) != 0) return ThrowErrno(info.Env(), "fstat");
  Napi::Object size = Napi::Object::New(info.Env());
  size.Set("bytes", static_cast<double>(st.st_size));
  size.Set("allocated", static_cast<double>(st.st_blocks) * 512);
  return size;
}

Napi::Value FdSync(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  if (!args.Ok()) return {};

  if (fsync(fd) != 0) return ThrowErrno(info.Env(), "fsync");
  return info.Env().Undefined();
}

Napi::Value FdAllocate(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  off_t bytes = static_cast<off_t>(args.Count(1, "bytes"));
  if (!args.Ok()) return {};

  if (fallocate(fd, 0, 0, bytes) == 0) return info.Env().Undefined();
  if (errno != EOPNOTSUPP && errno != ENOSYS) return ThrowErrno(info.Env(), "fallocate");
  if (ftruncate(fd, bytes) != 0) return ThrowErrno(info.Env(), "ftruncate");
  return info.Env().Undefined();
}

Napi::Value FdClose(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  if (!args.Ok()) return {};

  // On Linux the descriptor is gone even when close is interrupted: trying again could close somebody else's.
  if (close(fd) != 0 && errno != EINTR) return ThrowErrno(info.Env(), "close");
  return info.Env().Undefined();
}

Napi::Value FdDup(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  if (!args.Ok()) return {};

  int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) return ThrowErrno(info.Env(), "fcntl");
  return Napi::Number::New(info.Env(), copy);
}

Napi::Value FlockTry(const Napi::CallbackInfo& info) {
  Args args(info);
  int fd = args.Fd(0, "fd");
  std::string mode = args.Text(1, "mode");
  if (mode != "shared" && mode != "exclusive") args.Refuse("mode", "'shared' or 'exclusive'");
  if (!args.Ok()) return {};

  int operation = (mode == "shared" ? LOCK_SH : LOCK_EX) | LOCK_NB;
  int result;
  do {
    result = flock(fd, operation);
  } while (result != 0 && errno == EINTR);
  if (result != 0 && errno != EWOULDBLOCK) return ThrowErrno(info.Env(), "flock");
  return Napi::Boolean::New(info.Env(), result == 0);
}

Napi::Value Rename2(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string from = args.Text(0, "from");
  std::string to = args.Text(1, "to");
  std::string mode = args.Text(2, "mode");
  if (mode != "noreplace" && mode != "exchange") args.Refuse("mode", "'noreplace' or 'exchange'");
  if (!args.Ok()) return {};

  unsigned flags = mode == "noreplace" ? RENAME_NOREPLACE : RENAME_EXCHANGE;
  if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) != 0) {
    SysError error = SysError::Last("renameat2");
    // EEXIST is about the new name; whatever else fails is looked for first at the old one.
    return ThrowSysError(info.Env(), error, error.number == EEXIST ? to.c_str() : from.c_str());
  }
  return info.Env().Undefined();
}

Napi::Value DiskSpace(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string path = args.Text(0, "path");
  if (!args.Ok()) return {};

  struct statvfs fs;
  if (statvfs(path.c_str(), &fs) != 0) return ThrowErrno(info.Env(), "statvfs", path.c_str());
  double block_bytes = static_cast<double>(fs.f_frsize);
  Napi::Object space = Napi::Object::New(info.Env());
  space.Set("free", static_cast<double>(fs.f_bavail) * block_bytes);
  space.Set("total", static_cast<double>(fs.f_blocks) * block_bytes);
  return space;
}

}  // namespace

void RegisterFile(Napi::Env env, Napi::Object exports) {
  Export<FdResize>(env, exports, "fdResize");
  Export<FdWrite>(env, exports, "fdWrite");
  Export<FdRead>(env, exports, "fdRead");
  Export<FdSize>(env, exports, "fdSize");
  Export<FdSync>(env, exports, "fdSync");
  Export<FdAllocate>(env, exports, "fdAllocate");
  Export<FdClose>(env, exports, "fdClose");
  Export<FdDup>(env, exports, "fdDup");
  Export<FlockTry>(env, exports, "flockTry");
  Export<Rename2>(env, exports, "rename2");
  Export<DiskSpace>(env, exports, "diskSpace");
}

}  // namespace forkd
