// A child's first moments on one processor.
//
// A copied process takes a copy-on-write fault for nearly all it touches, and each fault must drop the old
// entry from the translation caches of every processor the process has run on. With its threads on two of
// them that is an interrupt to the other one for each page (ptep_clear_flush -> smp_call_function_many, a
// third of the cost of the faults in a virtual machine), and so is each hand-over between main loop and vCPU
// thread. On one processor both cost nothing. Later, when the working set has been copied, the child is let
// go anywhere.
#include <string.h>

#include "hotfork.h"
#include "sys.h"

enum { PIN_MS = 250, KERNEL_CPUSET_BYTES = sizeof(cpu_set_t) };

static int64_t pinned_until_ns;

/** The processor that the `number`th child of a batch gets. */
static unsigned nth_cpu(unsigned number) {
  unsigned skip = number % (unsigned)CPU_COUNT(&control.affinity);
  unsigned cpu = 0;
  while (!CPU_ISSET(cpu, &control.affinity) || skip-- > 0) cpu++;
  return cpu;
}

void affinity_pin(int spread) {
  cpu_set_t one;
  unsigned cpu = 0;
  if (CPU_COUNT(&control.affinity) < 2) return;
  if (spread >= 0)
    cpu = nth_cpu((unsigned)spread);
  else
    sys(SYS_getcpu, &cpu, NULL, NULL);
  memset(&one, 0, sizeof one);
  CPU_SET(cpu, &one);
  // Threads inherit it from the one that makes them, that is from the caller. Failure costs speed only.
  if (sys(SYS_sched_setaffinity, 0, KERNEL_CPUSET_BYTES, &one) == 0)
    pinned_until_ns = now_ns() + PIN_MS * 1000000LL;
}

static bool unpin_thread(int tid) {
  for (uint32_t i = 0; i < threads.count; i++) {
    // One that had chosen its processors before the fork has got its own choice back already.
    if (threads.thread[i].own_affinity && *thread_tid_field(threads.thread[i].tcb) == tid) return true;
  }
  sys(SYS_sched_setaffinity, tid, KERNEL_CPUSET_BYTES, &control.affinity);
  return true;
}

void affinity_unpin(void) {
  if (pinned_until_ns == 0) return;
  pinned_until_ns = 0;
  sys(SYS_sched_setaffinity, 0, KERNEL_CPUSET_BYTES, &control.affinity);
  each_other_thread(unpin_thread);
}

int affinity_due_ms(void) {
  if (pinned_until_ns == 0) return -1;
  const int64_t left_ns = pinned_until_ns - now_ns();
  return left_ns > 0 ? (int)(left_ns / 1000000) + 1 : 0;
}
