// The sparse copy: what is a hole or zero in the source is a hole in the copy.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "io.h"

namespace forkd {

namespace {

constexpr size_t kPageBytes = 4096;
// Large enough that the system calls cost nothing beside the copying, small enough for the second-level
// cache.
constexpr size_t kBufferBytes = 1 << 20;

// Writes the runs of non-zero pages of `data`, each run at once.
SysError WriteNonZeroPages(int to, const std::vector<uint8_t>& data, size_t bytes, uint64_t offset,
                           uint64_t* written) {
  size_t run = 0;  // where the run of non-zero pages at hand began
  for (size_t page = 0; page < bytes; page += kPageBytes) {
    size_t page_end = std::min(page + kPageBytes, bytes);
    bool zero = IsZero(data.data() + page, page_end - page);
    size_t run_end = zero ? page : page_end;
    if ((zero || page_end == bytes) && run_end > run) {
      if (SysError error = WriteAt(to, data.data() + run, run_end - run, offset + run)) return error;
      *written += run_end - run;
    }
    if (zero) run = page_end;
  }
  return {};
}

SysError CopyExtent(int from, int to, Extent extent, std::vector<uint8_t>& buffer, uint64_t* written) {
  // A file system may report data from the middle of a page on: the zero check works on whole pages.
  uint64_t offset = extent.begin / kPageBytes * kPageBytes;
  while (offset < extent.end) {
    size_t wanted = std::min<uint64_t>(buffer.size(), extent.end - offset);
    size_t got;
    if (SysError error = ReadAt(from, buffer.data(), wanted, offset, &got)) return error;
    if (SysError error = WriteNonZeroPages(to, buffer, got, offset, written)) return error;
    if (got < wanted) return {"pread", EIO};  // the source shrank under the copy
    offset += got;
  }
  return {};
}

SysError Copy(int from, int to, uint64_t* written) {
  struct stat source, target;
  if (fstat(from, &source) != 0 || fstat(to, &target) != 0) return SysError::Last("fstat");
  // The target is emptied first: onto itself that would be the end of the data.
  if (source.st_dev == target.st_dev && source.st_ino == target.st_ino) return {"ftruncate", EINVAL};
  uint64_t size;
  if (SysError error = RegularSize(from, &size)) return error;

  // Emptied, so that nothing older shows through the holes.
  if (ftruncate(to, 0) != 0 || ftruncate(to, static_cast<off_t>(size)) != 0)
    return SysError::Last("ftruncate");

  std::vector<uint8_t> buffer(kBufferBytes);
  for (uint64_t offset = 0; offset < size;) {
    Extent extent;
    if (SysError error = NextExtent(from, offset, size, &extent)) return error;
    if (SysError error = CopyExtent(from, to, extent, buffer, written)) return error;
    offset = extent.end;
  }
  return {};
}

Napi::Value CopySparse(const Napi::CallbackInfo& info) {
  Args args(info);
  int from = args.Fd(0, "from");
  int to = args.Fd(1, "to");
  if (!args.Ok()) return {};

  uint64_t written = 0;
  if (SysError error = Copy(from, to, &written)) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), static_cast<double>(written));
}

}  // namespace

void RegisterCopy(Napi::Env env, Napi::Object exports) {
  Export<CopySparse>(env, exports, "copySparse");
}

}  // namespace forkd
