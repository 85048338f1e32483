// Where libc keeps a thread's id, and the kernel's per-thread registrations that a copied thread must make
// again.
#include <linux/rseq.h>
#include <sys/auxv.h>
#include <sys/rseq.h>

#include "hotfork.h"
#include "sys.h"

// struct pthread is private to libc and its layout changes between versions, so no offset is written down
// here. Its `tid` member is found by looking for our own tid, and is believed only when it holds the right
// tid in every other thread as well (thread_layout_holds). glibc 2.36: offset 720 of a structure of 2304
// bytes.
enum { SEARCH_FROM = 64, SEARCH_TO = 2304 };
static size_t tid_offset;

// Length with which libc registered rseq: 32 until glibc 2.40, the kernel's size rounded up after it. The
// kernel wants the very same length to unregister.
static uint32_t rseq_bytes;

uintptr_t thread_tcb(void) {
  uintptr_t tcb;
  // x86-64 psABI: the word at %fs:0 is the address of the thread descriptor itself.
  __asm__("mov %%fs:0, %0" : "=r"(tcb));
  return tcb;
}

int* thread_tid_field(uintptr_t tcb) {
  return (int*)(tcb + tid_offset);
}

bool thread_layout_holds(const struct thread* thread) {
  return *thread_tid_field(thread->tcb) == thread->tid;
}

static long rseq_call(uintptr_t tcb, uint32_t bytes, int flags) {
  return sys(SYS_rseq, tcb + (uintptr_t)__rseq_offset, bytes, flags, RSEQ_SIG);
}

void rseq_register(uintptr_t tcb) {
  // A failure here costs speed in sched_getcpu(3) and nothing else: libc falls back to the system call.
  if (rseq_bytes != 0) rseq_call(tcb, rseq_bytes, 0);
}

void rseq_unregister(uintptr_t tcb) {
  if (rseq_bytes != 0) rseq_call(tcb, rseq_bytes, RSEQ_FLAG_UNREGISTER);
}

/** Finds the registered length by trying: unregistering with a wrong one fails with EINVAL and changes
 * nothing. */
static bool learn_rseq_length(uintptr_t tcb) {
  if (__rseq_size == 0) return true;  // switched off by the glibc.pthread.rseq tunable
  const unsigned long kernel = getauxval(AT_RSEQ_FEATURE_SIZE);
  const uint32_t lengths[] = {32, (uint32_t)((kernel + 31) & ~31UL), (uint32_t)kernel, __rseq_size};
  for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
    if (rseq_call(tcb, lengths[i], RSEQ_FLAG_UNREGISTER) != 0) continue;
    rseq_bytes = lengths[i];
    return rseq_call(tcb, rseq_bytes, 0) == 0;
  }
  return false;
}

bool thread_learn_layout(void) {
  const uintptr_t tcb = thread_tcb();
  const int tid = (int)sys(SYS_gettid);
  for (size_t offset = SEARCH_FROM; offset < SEARCH_TO && tid_offset == 0; offset += sizeof(int)) {
    if (*(const int*)(tcb + offset) == tid) tid_offset = offset;
  }
  return tid_offset != 0 && learn_rseq_length(tcb);
}
