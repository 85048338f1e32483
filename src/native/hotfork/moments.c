// A child's first moments, and the template's while it makes a batch: who runs where, and before whom.
//
// PIN. A copied process takes a copy-on-write fault for nearly all it touches, and each must drop the old
// entry from the translation caches of every processor the process has run on. With threads on two of them
// that is an interrupt to the other one for each page (ptep_clear_flush -> smp_call_function_many, costly in
// a virtual machine), and so is each hand-over between main loop and vCPU thread. On one processor both cost
// nothing.
//
// BATCH. A hundred children that start together and preempt each other at every wake-up finish all at the
// end, each with cold caches, and those that are ready burn idle ticks meanwhile. Batch tasks do not preempt
// on wake-up, so each runs nearly to completion: 12 ms of CPU a child where 18 were spent
// (check_preempt_wakeup_fair in the kernel's scheduler).
//
// BOOST. The forks are the one part that cannot be spread over processors, so they go first, where we are
// allowed to: as root, or with RLIMIT_NICE.
#include <string.h>
#include <sys/resource.h>

#include "hotfork.h"
#include "sys.h"

enum {
  FIRST_MOMENTS_MS = 250,
  NICE_BOOST = -20,
  KERNEL_CPUSET_BYTES = sizeof(cpu_set_t),
  GETPRIORITY_OFFSET = 20
};

static uint32_t flags;
static int64_t end_ns;
static int nice_before;
static bool boosted;

/** The processor that the `number`th child of a batch gets. */
static unsigned nth_cpu(unsigned number) {
  unsigned skip = number % (unsigned)CPU_COUNT(&control.affinity);
  unsigned cpu = 0;
  while (!CPU_ISSET(cpu, &control.affinity) || skip-- > 0) cpu++;
  return cpu;
}

static void pin(int spread) {
  cpu_set_t one;
  unsigned cpu = 0;
  if (CPU_COUNT(&control.affinity) < 2) return;
  if (spread >= 0)
    cpu = nth_cpu((unsigned)spread);
  else
    sys(SYS_getcpu, &cpu, NULL, NULL);
  memset(&one, 0, sizeof one);
  CPU_SET(cpu, &one);
  sys(SYS_sched_setaffinity, 0, KERNEL_CPUSET_BYTES, &one);
}

// Every call here may fail, and then only speed is lost. What it sets is inherited by the threads made
// afterwards.
void moments_begin(uint32_t fork_flags, int spread) {
  const struct sched_param none = {0};
  moments_unboost();
  flags = fork_flags & (HF_FORK_PIN | HF_FORK_BATCH);
  if (flags == 0) return;
  if ((flags & HF_FORK_PIN) != 0) pin(spread);
  if ((flags & HF_FORK_BATCH) != 0) sys(SYS_sched_setscheduler, 0, SCHED_BATCH, &none);
  end_ns = now_ns() + FIRST_MOMENTS_MS * 1000000LL;
}

static bool has_own_affinity(int tid) {
  for (uint32_t i = 0; i < threads.count; i++) {
    if (threads.thread[i].own_affinity && *thread_tid_field(threads.thread[i].tcb) == tid) return true;
  }
  return false;
}

static bool set_free(int tid) {
  const struct sched_param none = {0};
  // A thread that had chosen its processors before the fork was given its own choice back when it was
  // rebuilt.
  if ((flags & HF_FORK_PIN) != 0 && !has_own_affinity(tid)) {
    sys(SYS_sched_setaffinity, tid, KERNEL_CPUSET_BYTES, &control.affinity);
  }
  if ((flags & HF_FORK_BATCH) != 0) sys(SYS_sched_setscheduler, tid, SCHED_OTHER, &none);
  return true;
}

void moments_end(void) {
  if (flags == 0) return;
  set_free((int)sys(SYS_gettid));
  each_other_thread(set_free);
  flags = 0;
}

int moments_left_ms(void) {
  if (flags == 0) return -1;
  const int64_t left_ns = end_ns - now_ns();
  return left_ns > 0 ? (int)(left_ns / 1000000) + 1 : 0;
}

void moments_boost(void) {
  // The system call, unlike libc's, gives 20 - nice, so that no value looks like an error.
  nice_before = GETPRIORITY_OFFSET - (int)sys(SYS_getpriority, PRIO_PROCESS, 0);
  boosted = sys(SYS_setpriority, PRIO_PROCESS, 0, NICE_BOOST) == 0;
}

void moments_unboost(void) {
  if (boosted) sys(SYS_setpriority, PRIO_PROCESS, 0, nice_before);
  boosted = false;
}
