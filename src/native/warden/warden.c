// The first process of a jail's pid namespace. The kernel ends all others of a namespace with its first, so
// that can be none of the virtual machines: children outlive their template.
//
//   forkd_warden dies|stays [UID]     descriptor 0 is the reading end of the namespace's line
//
// The line is a pipe. All others in the namespace, and the engine for as long as it has not heard of the end
// of each, hold the writing end; when nobody does any more, there is nobody left to be first for. Nothing is
// ever read from it. Whoever holds the writing end sees it broken as soon as this process is ended by
// somebody else. One that `dies` is ended with the engine, and with it all that is in the namespace, whoever
// made it; one that `stays` is of a daemon, whose sandboxes live on.
//
// Without libc: what there is of it is a page of code, a stack, and two system calls.
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>

#include "../hotfork/sys.h"

enum { LINE = 0, FAILED = 71, LAST_CAPABILITY = 63, KERNEL_SIGSET_BYTES = 8 };

static _Noreturn void finish(int status) {
  for (;;) sys(SYS_exit_group, status);
}

static void require(long result) {
  if (result < 0) finish(FAILED);
}

/** Orphans of the namespace become its children: with SIGCHLD ignored the kernel reaps them. */
static void ignore_children(void) {
  const struct {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)(void);
    unsigned long mask;
  } ignore = {.handler = SIG_IGN};
  require(sys(SYS_rt_sigaction, SIGCHLD, &ignore, NULL, KERNEL_SIGSET_BYTES));
}

static unsigned number_of(const char* text) {
  unsigned number = 0;
  for (; *text >= '0' && *text <= '9'; text++) number = number * 10 + (unsigned)(*text - '0');
  return number;
}

/** Another user than the machines' own, where one is given; and no capability. */
static void give_up_privileges(const char* uid) {
  for (int one = 0; one <= LAST_CAPABILITY; one++) sys(SYS_prctl, PR_CAPBSET_DROP, one, 0, 0, 0);
  if (uid != NULL) {
    const unsigned number = number_of(uid);
    require(sys(SYS_setgroups, 0, NULL));
    require(sys(SYS_setresgid, number, number, number));
    require(sys(SYS_setresuid, number, number, number));
  }
  const struct __user_cap_header_struct version = {.version = _LINUX_CAPABILITY_VERSION_3};
  static const struct __user_cap_data_struct none[_LINUX_CAPABILITY_U32S_3];
  require(sys(SYS_capset, &version, none));
  require(sys(SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0));
  require(sys(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

/** After a change of user, which takes it away. If the engine is gone already, the machine has noticed that
 * itself before it ran (spawn_child.cc), and the line has ended. */
static void die_with_engine(void) {
  require(sys(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0));
}

/** From here on it can wait, and end. */
static void lock_up(void) {
  static const struct sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 4),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      // restart_syscall: a poll that SIGSTOP and SIGCONT have interrupted.
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_poll, 3, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const struct sock_fprog program = {.len = sizeof filter / sizeof *filter, .filter = (void*)filter};
  // A kernel without it: there is nothing in here that could be made to do anything else.
  sys(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

__attribute__((used)) static _Noreturn void run(const long* stack) {
  const char* const* arguments = (const void*)(stack + 1);
  struct pollfd line = {.fd = LINE};
  ignore_children();
  give_up_privileges(*stack > 2 ? arguments[2] : NULL);
  if (*stack > 1 && arguments[1][0] == 'd') die_with_engine();
  lock_up();
  // Asked for nothing, poll tells only of the end; what anybody writes wakes nobody.
  while (line.revents == 0) sys(SYS_poll, &line, 1, -1);
  finish(0);
}

// The kernel starts a program with argc at the top of its stack, and the stack aligned to 16 bytes.
__asm__(
    ".globl _start\n"
    "_start:\n\t"
    "xor %ebp, %ebp\n\t"
    "mov %rsp, %rdi\n\t"
    "call run\n\t"
    "ud2");
