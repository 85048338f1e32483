#include "uffd_ioctl.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fd.h"

namespace forkd::uffd_ioctl {

namespace {

SysError Call(int fd, unsigned long request, void* argument, const char* name) {
  int result;
  do {
    result = ioctl(fd, request, argument);
  } while (result != 0 && errno == EINTR);
  return result == 0 ? SysError() : SysError::Last(name);
}

// The kernel writes the bytes done, or a negative errno, or nothing.
uint64_t Progress(int64_t written) {
  return written > 0 ? static_cast<uint64_t>(written) : 0;
}

}  // namespace

SysError Open(int* fd) {
  long made = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (made < 0 && errno == EPERM) {
    constexpr unsigned long kNew = _IO(0xAA, 0x00);  // USERFAULTFD_IOC_NEW
    UniqueFd device(open("/dev/userfaultfd", O_RDWR | O_CLOEXEC));
    if (!device.Valid()) return {"userfaultfd", EPERM};
    made = ioctl(device.Get(), kNew, O_CLOEXEC | O_NONBLOCK);
  }
  if (made < 0) return SysError::Last("userfaultfd");
  *fd = static_cast<int>(made);
  return {};
}

SysError Api(int fd, uint64_t* features) {
  uffdio_api argument = {UFFD_API, *features, 0};
  SysError error = Call(fd, UFFDIO_API, &argument, "ioctl UFFDIO_API");
  *features = argument.features;
  return error;
}

SysError Register(int fd, uint64_t start, uint64_t bytes, uint64_t mode) {
  uffdio_register argument = {{start, bytes}, mode, 0};
  return Call(fd, UFFDIO_REGISTER, &argument, "ioctl UFFDIO_REGISTER");
}

SysError Unregister(int fd, uint64_t start, uint64_t bytes) {
  uffdio_range argument = {start, bytes};
  return Call(fd, UFFDIO_UNREGISTER, &argument, "ioctl UFFDIO_UNREGISTER");
}

SysError Wake(int fd, uint64_t start, uint64_t bytes) {
  uffdio_range argument = {start, bytes};
  return Call(fd, UFFDIO_WAKE, &argument, "ioctl UFFDIO_WAKE");
}

SysError Copy(int fd, uint64_t to, const uint8_t* from, uint64_t bytes, uint64_t mode, uint64_t* progress) {
  uffdio_copy argument = {to, reinterpret_cast<uint64_t>(from), bytes, mode, 0};
  SysError error = Call(fd, UFFDIO_COPY, &argument, "ioctl UFFDIO_COPY");
  *progress = error ? Progress(argument.copy) : bytes;
  return error;
}

SysError Zeropage(int fd, uint64_t start, uint64_t bytes, uint64_t mode, uint64_t* progress) {
  uffdio_zeropage argument = {{start, bytes}, mode, 0};
  SysError error = Call(fd, UFFDIO_ZEROPAGE, &argument, "ioctl UFFDIO_ZEROPAGE");
  *progress = error ? Progress(argument.zeropage) : bytes;
  return error;
}

SysError WriteProtect(int fd, uint64_t start, uint64_t bytes, uint64_t mode) {
  uffdio_writeprotect argument = {{start, bytes}, mode};
  return Call(fd, UFFDIO_WRITEPROTECT, &argument, "ioctl UFFDIO_WRITEPROTECT");
}

SysError Poison(int fd, uint64_t start, uint64_t bytes, uint64_t* progress) {
  uffdio_poison argument = {{start, bytes}, 0, 0};
  SysError error = Call(fd, UFFDIO_POISON, &argument, "ioctl UFFDIO_POISON");
  *progress = error ? Progress(argument.updated) : bytes;
  return error;
}

}  // namespace forkd::uffd_ioctl
