// In a child: the parked threads are made again, each from its own thread descriptor and its own signal
// frame.
#include <linux/sched.h>
#include <sys/prctl.h>

#include "hotfork.h"
#include "sys.h"

enum { NURSERY_BYTES = 16384, BELOW_FRAME = 256, KERNEL_CPUSET_BYTES = sizeof(cpu_set_t) };

// The rebuilder's stack. Not the control thread's, which gets a new owner while the rebuilder is still at
// work; never written in a template, so a child gets fresh zero pages here and copies none.
static uint8_t nursery[NURSERY_BYTES] __attribute__((aligned(4096)));

/** Threads of the last rebuild that no longer need `threads`. A freeze writes that anew and has to wait for
 * them. */
static uint32_t to_resume;
static uint32_t resumed;

void rebuild_settle(void) {
  while (__atomic_load_n(&resumed, __ATOMIC_ACQUIRE) != to_resume) sys(SYS_sched_yield);
}

uintptr_t nursery_top(void) {
  return (uintptr_t)nursery + NURSERY_BYTES;
}

/** What the kernel keeps per thread and a new one lacks. The caller has the thread's FS base and tid field
 * already. */
static void take_over(const struct thread* thread) {
  rseq_register(thread->tcb);
  // Robust and priority-inheriting mutexes of this thread are released by the kernel when it dies: only if it
  // knows them.
  if (thread->robust_list != NULL) sys(SYS_set_robust_list, thread->robust_list, thread->robust_list_bytes);
  sys(SYS_prctl, PR_SET_NAME, thread->name);
  sys(SYS_prctl, PR_SET_TIMERSLACK, thread->timer_slack_ns);
  if (thread->own_affinity) sys(SYS_sched_setaffinity, 0, KERNEL_CPUSET_BYTES, &thread->affinity);
  locks_change_owner(thread->locks, thread->tid, *thread_tid_field(thread->tcb));
}

/**
 * Goes back to where the thread was when it was parked. rt_sigreturn takes everything from the frame:
 * registers, floating point and vector state, signal mask, alternate stack. It expects the stack pointer
 * where a handler's `ret` would leave it, just above the return address at the bottom of the frame: at the
 * ucontext.
 */
_Noreturn static void resume(const struct thread* thread) {
  void* frame = thread->context;
  __atomic_add_fetch(&resumed, 1, __ATOMIC_ACQ_REL);
  __asm__ volatile(
      "mov %0, %%rsp\n\t"
      "mov %1, %%eax\n\t"
      "syscall\n\t"
      "ud2"
      :
      : "r"(frame), "i"(SYS_rt_sigreturn)
      : "memory");
  __builtin_unreachable();
}

static void thread_begin(void* argument) {
  const struct thread* thread = argument;
  take_over(thread);
  resume(thread);
}

/**
 * Below its signal frame a thread's stack holds only our handler's own frames, of no use in a copy. A few
 * hundred bytes lower is most often the same page as the frame: one copied page fewer.
 */
static uintptr_t stack_below_frame(const struct thread* thread) {
  return ((uintptr_t)thread->context - BELOW_FRAME) & ~(uintptr_t)15;
}

static const unsigned long THREAD_FLAGS = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                                          CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID |
                                          CLONE_CHILD_CLEARTID;

/** The flags of glibc's own pthread_create: the kernel writes the tid field at birth, and clears and wakes it
 * at the end. */
static void start_thread(uintptr_t tcb, uintptr_t stack, void (*run)(void*), void* argument) {
  int* tid = thread_tid_field(tcb);
  const long result = clone_on_stack(THREAD_FLAGS, stack, tid, tid, tcb, run, argument);
  if (result > 0) return;
  const struct refusal why = {HF_SYSCALL, (int)-result, "child: clone of a thread"};
  child_fail(&why);
}

static void control_begin(void* unused) {
  rseq_register(control.tcb);
  // By now every thread exists: one that was parked inside the clocks' spin lock will give it up.
  clock_go();
  control_loop(unused);
}

_Noreturn void rebuild_all(void* unused) {
  (void)unused;
  const struct thread* leader = park_main_thread();
  control.phase = HF_PHASE_RUNNING;
  control.threads_exist = true;
  park_forget_round();
  to_resume = threads.count;
  resumed = 0;
  // Leave the control thread's identity to its new owner.
  rseq_unregister(control.tcb);
  for (uint32_t i = 0; i < threads.count; i++) {
    struct thread* thread = &threads.thread[i];
    if (thread != leader) start_thread(thread->tcb, stack_below_frame(thread), thread_begin, thread);
  }
  start_thread(control.tcb, control.stack, control_begin, NULL);
  // The process's first thread becomes the main thread, whoever forked it: programs compare gettid() with
  // getpid(), and the process is listed under its leader's name.
  sys(SYS_arch_prctl, 0x1002 /* ARCH_SET_FS */, leader->tcb);
  sys(SYS_set_tid_address, thread_tid_field(leader->tcb));
  *thread_tid_field(leader->tcb) = control.pid;
  take_over(leader);
  resume(leader);
}
