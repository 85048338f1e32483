// Raw system calls. The shim runs while other threads are parked at arbitrary points: inside malloc, inside
// stdio, inside the dynamic linker. So it may take no lock and touch no errno: every call returns the value
// or -errno.
#ifndef FORKD_HOTFORK_SYS_H_
#define FORKD_HOTFORK_SYS_H_

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

#define sys(...) SYS_PICK_(__VA_ARGS__, sys6, sys5, sys4, sys3, sys2, sys1, sys0)(__VA_ARGS__)
#define SYS_PICK_(nr, a, b, c, d, e, f, name, ...) name
#define sys0(nr) sys_raw(nr, 0, 0, 0, 0, 0, 0)
#define sys1(nr, a) sys_raw(nr, (long)(a), 0, 0, 0, 0, 0)
#define sys2(nr, a, b) sys_raw(nr, (long)(a), (long)(b), 0, 0, 0, 0)
#define sys3(nr, a, b, c) sys_raw(nr, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define sys4(nr, a, b, c, d) sys_raw(nr, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define sys5(nr, a, b, c, d, e) sys_raw(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define sys6(nr, a, b, c, d, e, f) \
  sys_raw(nr, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static inline long sys_raw(long nr, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

static inline int64_t now_ns(void) {
  struct timespec now;
  sys(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/** Waits while *word == value. A null timeout waits for ever. Returns 0, -EAGAIN, -EINTR or -ETIMEDOUT. */
static inline long futex_wait(uint32_t* word, uint32_t value, const struct timespec* timeout) {
  return sys(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, timeout);
}

static inline void futex_wake_all(uint32_t* word) {
  sys(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX);
}

static inline int open_ro(const char* path, int extra) {
  return (int)sys(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC | extra);
}

#endif  // FORKD_HOTFORK_SYS_H_
