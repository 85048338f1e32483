#include "uffd.h"

#include <fcntl.h>

#include <cstdio>
#include <cstring>
#include <iterator>

#include "io.h"
#include "uffd_ioctl.h"

namespace forkd {

namespace {

constexpr struct {
  uint64_t feature;
  const char* name;
} kFeatures[] = {
    {UFFD_FEATURE_PAGEFAULT_FLAG_WP, "pagefault_flag_wp"},
    {UFFD_FEATURE_EVENT_FORK, "event_fork"},
    {UFFD_FEATURE_EVENT_REMAP, "event_remap"},
    {UFFD_FEATURE_EVENT_REMOVE, "event_remove"},
    {UFFD_FEATURE_MISSING_HUGETLBFS, "missing_hugetlbfs"},
    {UFFD_FEATURE_MISSING_SHMEM, "missing_shmem"},
    {UFFD_FEATURE_EVENT_UNMAP, "event_unmap"},
    {UFFD_FEATURE_SIGBUS, "sigbus"},
    {UFFD_FEATURE_THREAD_ID, "thread_id"},
    {UFFD_FEATURE_MINOR_HUGETLBFS, "minor_hugetlbfs"},
    {UFFD_FEATURE_MINOR_SHMEM, "minor_shmem"},
    {UFFD_FEATURE_EXACT_ADDRESS, "exact_address"},
    {UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "wp_hugetlbfs_shmem"},
    {UFFD_FEATURE_WP_UNPOPULATED, "wp_unpopulated"},
    {UFFD_FEATURE_POISON, "poison"},
};

// `place(at, bytes, &progress)` is one of the ioctls that put pages. What it stops at is passed over page by
// page: a page that exists, or the border between two mappings (ENOENT too, though both are registered).
template <typename Place>
Placed PlaceAll(uint64_t start, uint64_t bytes, SysError* error, uint64_t* skipped, Place place) {
  uint64_t at = start, end = start + bytes;
  uint64_t step = bytes;
  while (at < end) {
    uint64_t progress = 0;
    uint64_t wanted = step < end - at ? step : end - at;
    SysError failed = place(at, wanted, &progress);
    at += progress;
    if (!failed || progress > 0) continue;
    switch (failed.number) {
      case EEXIST:
        at += kPageBytes;
        if (skipped) *skipped += kPageBytes;
        break;
      case ENOENT:
        if (wanted > kPageBytes) {
          step = kPageBytes;
          break;
        }
        at += kPageBytes;
        if (skipped) *skipped += kPageBytes;
        break;
      case EAGAIN:
        return Placed::kBusy;
      case ESRCH:
        return Placed::kGone;
      default:
        *error = failed;
        return Placed::kFailed;
    }
  }
  return Placed::kDone;
}

SysError FeaturesOf(int fd, uint64_t* features) {
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
  UniqueFd info(open(path, O_RDONLY | O_CLOEXEC));
  if (!info.Valid()) return SysError::Last("open fdinfo");
  char text[1024] = {};
  size_t bytes;
  if (SysError error = ReadAt(info.Get(), reinterpret_cast<uint8_t*>(text), sizeof text - 1, 0, &bytes)) {
    return error;
  }
  // "API:\t<api>:<features asked for>:<all that there are>"
  unsigned api, asked;
  const char* line = strstr(text, "API:");
  if (!line || sscanf(line, "API: %x:%x:", &api, &asked) != 2) return {"read fdinfo", EINVAL};
  *features = asked;
  return {};
}

SysError MakeNonBlocking(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) return SysError::Last("fcntl");
  return {};
}

}  // namespace

SysError Uffd::Supported(uint64_t* features) {
  int fd;
  if (SysError error = uffd_ioctl::Open(&fd)) return error;
  UniqueFd owned(fd);
  *features = 0;
  if (SysError error = uffd_ioctl::Api(fd, features)) return error;
  // Listed for everybody, given to those only who may trace any process: asking is the only way to know.
  uint64_t follow = UFFD_FEATURE_EVENT_FORK;
  if (*features & follow) {
    int again;
    if (SysError error = uffd_ioctl::Open(&again)) return error;
    UniqueFd asked(again);
    if (uffd_ioctl::Api(again, &follow)) *features &= ~uint64_t{UFFD_FEATURE_EVENT_FORK};
  }
  return {};
}

SysError Uffd::Create(uint64_t required, Uffd* made, uint64_t* missing) {
  // UFFDIO_API with a feature that the kernel lacks is only EINVAL, so what there is comes first.
  uint64_t supported;
  if (SysError error = Supported(&supported)) return error;
  *missing = required & ~supported;
  if (*missing) return {"ioctl UFFDIO_API", ENOTSUP};
  int fd;
  if (SysError error = uffd_ioctl::Open(&fd)) return error;
  made->fd_ = UniqueFd(fd);
  made->features_ = required;
  return uffd_ioctl::Api(fd, &required);
}

SysError Uffd::Adopt(UniqueFd fd, Uffd* made) {
  if (SysError error = FeaturesOf(fd.Get(), &made->features_)) return error;
  if (SysError error = MakeNonBlocking(fd.Get())) return error;
  made->fd_ = std::move(fd);
  return {};
}

SysError Uffd::AdoptChild(UniqueFd fd, uint64_t features, Uffd* made) {
  // It has the flags that its parent was made with, not those that were set later.
  if (SysError error = MakeNonBlocking(fd.Get())) return error;
  made->fd_ = std::move(fd);
  made->features_ = features;
  return {};
}

std::vector<std::string> Uffd::Names(uint64_t features) {
  std::vector<std::string> names;
  for (const auto& entry : kFeatures) {
    if (features & entry.feature) names.emplace_back(entry.name);
  }
  return names;
}

SysError Uffd::Register(uint64_t start, uint64_t bytes, uint64_t mode) const {
  return uffd_ioctl::Register(fd_.Get(), start, bytes, mode);
}

SysError Uffd::Unregister(uint64_t start, uint64_t bytes) const {
  return uffd_ioctl::Unregister(fd_.Get(), start, bytes);
}

SysError Uffd::Wake(uint64_t start, uint64_t bytes) const {
  return uffd_ioctl::Wake(fd_.Get(), start, bytes);
}

Placed Uffd::Copy(uint64_t to, const uint8_t* from, uint64_t bytes, SysError* error,
                  uint64_t* skipped) const {
  return PlaceAll(to, bytes, error, skipped, [&](uint64_t at, uint64_t wanted, uint64_t* progress) {
    return uffd_ioctl::Copy(fd_.Get(), at, from + (at - to), wanted, UFFDIO_COPY_MODE_DONTWAKE, progress);
  });
}

Placed Uffd::Zero(uint64_t start, uint64_t bytes, SysError* error) const {
  return PlaceAll(start, bytes, error, nullptr, [&](uint64_t at, uint64_t wanted, uint64_t* progress) {
    return uffd_ioctl::Zeropage(fd_.Get(), at, wanted, UFFDIO_ZEROPAGE_MODE_DONTWAKE, progress);
  });
}

Placed Uffd::Poison(uint64_t start, uint64_t bytes, SysError* error) const {
  return PlaceAll(start, bytes, error, nullptr, [&](uint64_t at, uint64_t wanted, uint64_t* progress) {
    return uffd_ioctl::Poison(fd_.Get(), at, wanted, progress);
  });
}

SysError Uffd::Protect(uint64_t start, uint64_t bytes) const {
  return uffd_ioctl::WriteProtect(fd_.Get(), start, bytes, UFFDIO_WRITEPROTECT_MODE_WP);
}

SysError Uffd::Unprotect(uint64_t start, uint64_t bytes) const {
  return uffd_ioctl::WriteProtect(fd_.Get(), start, bytes, 0);
}

bool Uffd::Alive(uint64_t address) const {
  // It changes nothing: there is no protection to take away. Of all its errors only ESRCH is about the
  // process.
  SysError error = uffd_ioctl::WriteProtect(fd_.Get(), address, kPageBytes, 0);
  return error.number != ESRCH;
}

}  // namespace forkd
