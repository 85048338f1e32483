// One child: the clone, and its first steps on the way to being a process of its own.
#include <linux/sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "hotfork.h"
#include "sys.h"

static int death_signal;
/** As this process numbers it: 0 when it is outside of our pid namespace. */
static int engine_pid;
/** As /proc does. */
static int engine_outside;

/** Whose child this process is, or -1. getppid(2) would say 0 of whoever is outside of the namespace. */
static int parent_outside(int stat_fd) {
  char text[512];
  const long bytes = sys(SYS_pread64, stat_fd, text, sizeof text - 1, 0);
  if (bytes <= 0) return -1;
  text[bytes] = '\0';
  // `pid (name) state ppid`; the name may hold anything.
  const char* end = strrchr(text, ')');
  return end == NULL || strlen(end) < 5 ? -1 : atoi(end + 4);
}

bool fork_init(void) {
  engine_pid = getppid();
  const int stat_fd = open_ro("/proc/self/stat", 0);
  engine_outside = parent_outside(stat_fd);
  if (stat_fd >= 0) sys(SYS_close, stat_fd);
  // Per thread in the kernel, and this one is the main thread's. A forked process starts with none.
  return sys(SYS_prctl, PR_GET_PDEATHSIG, &death_signal) == 0;
}

bool fork_die_with_engine(int stat_fd) {
  if (death_signal == 0) return true;
  // The engine may have died before this takes effect; then nobody will send the signal.
  return sys(SYS_prctl, PR_SET_PDEATHSIG, death_signal) == 0 && sys(SYS_getppid) == engine_pid &&
         (stat_fd < 0 || parent_outside(stat_fd) == engine_outside);
}

// The registers carry the function over the system call, not the new stack: writing to that here would copy a
// page of the template for each child.
__attribute__((naked, noinline)) static long clone_raw(
    long nr __attribute__((unused)), long a __attribute__((unused)), long b __attribute__((unused)),
    long c __attribute__((unused)), long d __attribute__((unused)), long e __attribute__((unused)),
    void (*run)(void*) __attribute__((unused)), void* argument __attribute__((unused))) {
  __asm__(
      "push %r12\n\t"
      "push %r13\n\t"
      "mov 24(%rsp), %r12\n\t"  // run: 7th argument, above two pushes and the return address
      "mov 32(%rsp), %r13\n\t"
      "mov %rdi, %rax\n\t"
      "mov %rsi, %rdi\n\t"
      "mov %rdx, %rsi\n\t"
      "mov %rcx, %rdx\n\t"
      "mov %r8, %r10\n\t"
      "mov %r9, %r8\n\t"
      "syscall\n\t"
      "test %rax, %rax\n\t"
      "jz 1f\n\t"
      "pop %r13\n\t"
      "pop %r12\n\t"
      "ret\n"
      "1:\n\t"
      "xor %ebp, %ebp\n\t"  // ends a debugger's backtrace
      "mov %r13, %rdi\n\t"
      "call *%r12\n\t"
      "ud2");
}

long clone_on_stack(unsigned long flags, uintptr_t stack, int* parent_tid, int* child_tid, uintptr_t tls,
                    void (*run)(void*), void* argument) {
  return clone_raw(SYS_clone, (long)flags, (long)stack, (long)parent_tid, (long)child_tid, (long)tls, run,
                   argument);
}

_Noreturn void run_on_stack(uintptr_t stack, void (*run)(void*), void* argument) {
  __asm__ volatile(
      "mov %0, %%rsp\n\t"
      "xor %%ebp, %%ebp\n\t"
      "call *%1\n\t"
      "ud2"
      :
      : "r"(stack), "r"(run), "D"(argument)
      : "memory");
  __builtin_unreachable();
}

/** Joins the cgroups whose cgroup.procs were given, before anything else is spent. */
static bool join_cgroups(const struct fd_sources* sources, struct refusal* why) {
  for (uint32_t i = 0; i < sources->count; i++) {
    if (sources->how[i] != HF_CGROUP_PROCS) continue;
    const long result = sys(SYS_write, sources->child_end[i], "0", 1);
    if (result == 1) continue;
    *why = (struct refusal){HF_SYSCALL, (int)-result, "child: write cgroup.procs"};
    return false;
  }
  return true;
}

/** The child's first code. It is alone, on the nursery stack, with the control thread's thread-local storage.
 */
static void child_begin(void* argument) {
  struct birth* birth = argument;
  struct refusal why;
  control.pid = (int)sys(SYS_getpid);
  control.threads_exist = false;
  control.children = 0;
  if (!fds_take_control(&birth->sources)) sys(SYS_exit_group, CHILD_FAILED_STATUS);
  control.copy = true;
  control.tied = birth->tied;
  if (control.tied) {
    // A later engine is not its ancestor, and reads the memory of its copies: Yama has to be told (EINVAL
    // where there is none).
    sys(SYS_prctl, PR_SET_PTRACER, PR_SET_PTRACER_ANY);
  } else if (!fork_die_with_engine(-1)) {
    // Where that cannot tell, the control socket does, once it is looked at.
    sys(SYS_exit_group, CHILD_FAILED_STATUS);
  }
  // It would show the memory of the process that went to jail, whatever becomes of this one.
  if (control.pagemap_fd >= 0) sys(SYS_close, control.pagemap_fd);
  control.pagemap_fd = -1;
  // A group of its own: a signal to the engine's terminal, or kill(-group), must not reach all children.
  sys(SYS_setpgid, 0, 0);
  // Where the template's heap or translation buffer ends, a child's first write would clear 2 MiB to use 4
  // KiB of it: no new huge pages. Those that are there stay shared. The child inherits this to its own
  // copies.
  sys(SYS_prctl, PR_SET_THP_DISABLE, 1, 0, 0, 0);
  if (birth->pin) affinity_pin(birth->spread);
  if (!join_cgroups(&birth->sources, &why) || !fds_apply(&birth->sources, &why)) child_fail(&why);
  // A frozen child has the control thread's life and no other until it is released.
  if (birth->frozen) run_on_stack(control.stack, control_loop, NULL);
  rebuild_all(NULL);
}

long fork_child(struct birth* birth) {
  // CLONE_PARENT: a sibling, that is a child of the engine, which reaps it; the exit signal is taken over
  // from us. CLONE_CHILD_SETTID/CLEARTID: libc's own record of the leading thread's id, which pthread_join
  // waits on.
  const unsigned long flags = CLONE_PARENT | CLONE_PIDFD | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
  const uintptr_t leader = birth->frozen ? control.tcb : park_main_thread()->tcb;
  birth->pidfd = -1;
  if (birth->cgroup_into < 0) {
    // Not libc's fork(): it would take the malloc and stdio locks, which parked threads may hold, run atfork
    // handlers, and forget the other threads' stacks.
    return clone_on_stack(flags, nursery_top(), &birth->pidfd, thread_tid_field(leader), 0, child_begin,
                          birth);
  }
  const struct clone_args arguments = {
      .flags = flags | CLONE_INTO_CGROUP,
      .pidfd = (uintptr_t)&birth->pidfd,
      .child_tid = (uintptr_t)thread_tid_field(leader),
      // clone3 takes the lowest address and the size; nursery_top() is 16 KiB above the bottom.
      .stack = nursery_top() - 8192,
      .stack_size = 8192,
      .cgroup = (uint64_t)birth->cgroup_into,
  };
  return clone_raw(SYS_clone3, (long)&arguments, sizeof arguments, 0, 0, 0, child_begin, birth);
}
