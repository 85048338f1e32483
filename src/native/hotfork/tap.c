// A tap is told how long the header before each frame is, and what the guest leaves to its network card
// (sums, segments). A tap that takes another's place must be told the same, or frames are misread; the second
// cannot be asked of a tap. So what QEMU tells its tap is listened to.
#include <errno.h>
#include <linux/if_tun.h>
#include <stdarg.h>
#include <sys/ioctl.h>

#include "hotfork.h"
#include "sys.h"

static int header_bytes = -1;
static long offload = -1;

HF_EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  void* const argument = va_arg(arguments, void*);
  va_end(arguments);
  const long result = sys(SYS_ioctl, fd, request, argument);
  if (result < 0) {
    errno = (int)-result;
    return -1;
  }
  if (request == TUNSETVNETHDRSZ) header_bytes = *(int*)argument;
  if (request == TUNSETOFFLOAD) offload = (long)argument;
  return (int)result;
}

void tap_settle(int fd) {
  // Refused by what is no tap: a console, or what a child without a network has there.
  if (header_bytes >= 0) sys(SYS_ioctl, fd, TUNSETVNETHDRSZ, &header_bytes);
  if (offload >= 0) sys(SYS_ioctl, fd, TUNSETOFFLOAD, offload);
}
