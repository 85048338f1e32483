// Lists the threads of this process, without opendir(3), which allocates.
#include "hotfork.h"
#include "sys.h"

struct linux_dirent64 {
  uint64_t ino;
  int64_t off;
  uint16_t reclen;
  uint8_t type;
  char name[];
};

long each_other_thread(bool (*visit)(int tid)) {
  char buffer[4096] __attribute__((aligned(8)));
  const int self = (int)sys(SYS_gettid);
  const int directory = open_ro("/proc/self/task", O_DIRECTORY);
  if (directory < 0) return directory;
  bool going = true;
  long bytes = 0;
  while (going && (bytes = sys(SYS_getdents64, directory, buffer, sizeof buffer)) > 0) {
    for (long at = 0; going && at < bytes;) {
      const struct linux_dirent64* entry = (const void*)(buffer + at);
      at += entry->reclen;
      int tid = 0;
      for (const char* digit = entry->name; *digit >= '0' && *digit <= '9'; digit++)
        tid = tid * 10 + (*digit - '0');
      if (tid != 0 && tid != self) going = visit(tid);
    }
  }
  sys(SYS_close, directory);
  return bytes < 0 ? bytes : 0;
}
