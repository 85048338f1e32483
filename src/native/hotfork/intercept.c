// Calls of the host program that would break a hot fork, answered differently.
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#include "hotfork.h"
#include "sys.h"

/**
 * QEMU marks guest memory MADV_DONTFORK (softmmu/physmem.c, ram_block_add), since its own helpers have no use
 * for it. Our children do.
 */
HF_EXPORT int madvise(void* address, size_t bytes, int advice) {
  if (advice == MADV_DONTFORK) return 0;
  const long result = sys(SYS_madvise, address, bytes, advice);
  if (result == 0) return 0;
  errno = (int)-result;
  return -1;
}

// glibc keeps the first two real-time signals for itself (cancellation, set*id across threads) and never lets
// a program block them; a replacement of its calls must not either.
enum { SIGNAL_CANCEL = 32, SIGNAL_SETXID = 33, KERNEL_SIGSET_BYTES = 8 };

/** QEMU starts its threads with every signal blocked; the one that parks them has to come through. */
static int change_mask(int how, const sigset_t* set, sigset_t* old) {
  sigset_t open;
  if (set != NULL && how != SIG_UNBLOCK) {
    open = *set;
    sigdelset(&open, park_signal());
    // Not sigdelset(3): it refuses these two.
    *(unsigned long*)&open &= ~(1UL << (SIGNAL_CANCEL - 1) | 1UL << (SIGNAL_SETXID - 1));
    set = &open;
  }
  return (int)-sys(SYS_rt_sigprocmask, how, set, old, KERNEL_SIGSET_BYTES);
}

HF_EXPORT int pthread_sigmask(int how, const sigset_t* set, sigset_t* old) {
  return change_mask(how, set, old);
}

HF_EXPORT int sigprocmask(int how, const sigset_t* set, sigset_t* old) {
  const int error = change_mask(how, set, old);
  if (error == 0) return 0;
  errno = error;
  return -1;
}

struct io_uring;
/**
 * A ring belongs to the address space and task that made it and cannot be made anew in mid-flight. QEMU and
 * others take a failure here as "not available" and use threads and poll(2).
 */
HF_EXPORT int io_uring_queue_init(unsigned entries, struct io_uring* ring, unsigned flags) {
  (void)entries, (void)ring, (void)flags;
  return -ENOSYS;
}

typedef struct io_context* io_context_t;
/** libaio's: a kernel AIO context belongs to one address space and is not inherited. QEMU's aio=native fails
 * at start, by name. */
HF_EXPORT int io_setup(int events, io_context_t* context) {
  (void)events, (void)context;
  return -ENOSYS;
}
