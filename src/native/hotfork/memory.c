// State that no copy can have, and making the next forks cheap.
#include "hotfork.h"
#include "sys.h"

bool memory_copyable(struct refusal* why) {
  // timer_create(2) timers are not inherited (proc(5)); the file needs CONFIG_CHECKPOINT_RESTORE, which
  // distributions set.
  char byte;
  const int fd = open_ro("/proc/self/timers", 0);
  if (fd < 0) return true;
  const long bytes = sys(SYS_read, fd, &byte, 1);
  sys(SYS_close, fd);
  if (bytes <= 0) return true;
  *why = (struct refusal){HF_UNSUPPORTED, 0, "the process has POSIX timers, which no child would have"};
  return false;
}

void memory_trim(void) {}
