// The system calls that a monitor in jail may make: those that QEMU and this shim were seen to make once all
// files are open, and the same again under the names that other versions of libc use. Anything else ends the
// process with SIGSYS; the kernel's log says which call it was (audit, type=1326).
//
// Arguments are looked at where a call could reach another process: children of one template have one user.
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "hotfork.h"
#include "sys.h"

enum { INSTRUCTIONS_MAX = 512, LISTED_MAX = 16 };

static struct sock_filter program[INSTRUCTIONS_MAX];
static unsigned short length;

static void emit(uint16_t code, uint8_t if_true, uint8_t if_false, uint32_t value) {
  if (length < INSTRUCTIONS_MAX)
    program[length] = (struct sock_filter){.code = code, .jt = if_true, .jf = if_false, .k = value};
  length++;
}

static void load(size_t offset) {
  emit(BPF_LD | BPF_W | BPF_ABS, 0, 0, (uint32_t)offset);
}

static void finish(uint32_t verdict) {
  emit(BPF_RET | BPF_K, 0, 0, verdict);
}

static void allow(long nr) {
  emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (uint32_t)nr);
  finish(SECCOMP_RET_ALLOW);
}

/** The low half of an argument: the kernel itself takes ints, and the flags of clone, from there. */
static void load_argument(int argument) {
  load(offsetof(struct seccomp_data, args) + (size_t)argument * sizeof(uint64_t));
}

/** Allowed when the argument is one of `values`. */
static void allow_values(long nr, int argument, const uint32_t* values, uint8_t count) {
  // Over the load, a pair for each value, and the verdict.
  emit(BPF_JMP | BPF_JEQ | BPF_K, 0, (uint8_t)(2 + 2 * count), (uint32_t)nr);
  load_argument(argument);
  for (uint8_t i = 0; i < count; i++) {
    emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, values[i]);
    finish(SECCOMP_RET_ALLOW);
  }
  finish(SECCOMP_RET_KILL_PROCESS);
}

#define ALLOW_VALUES(nr, argument, ...)                                            \
  do {                                                                             \
    const uint32_t values[] = {__VA_ARGS__};                                       \
    allow_values(nr, argument, values, (uint8_t)(sizeof values / sizeof *values)); \
  } while (0)

/** Allowed when none of these bits is set. */
static void allow_without(long nr, int argument, uint32_t bits) {
  emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 4, (uint32_t)nr);
  load_argument(argument);
  emit(BPF_JMP | BPF_JSET | BPF_K, 1, 0, bits);
  finish(SECCOMP_RET_ALLOW);
  finish(SECCOMP_RET_KILL_PROCESS);
}

static void fail_with(long nr, int error) {
  emit(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, (uint32_t)nr);
  finish(SECCOMP_RET_ERRNO | (uint32_t)error);
}

/** Most frequent first: kernels before 5.11 walk the list for each call. */
static const short always[] = {
    SYS_futex, SYS_ppoll, SYS_write, SYS_read, SYS_recvmsg, SYS_sendmsg, SYS_poll, SYS_rt_sigprocmask,
    SYS_mprotect, SYS_madvise, SYS_pread64, SYS_preadv, SYS_clock_gettime, SYS_close, SYS_mmap, SYS_munmap,
    // data
    SYS_readv, SYS_writev, SYS_pwrite64, SYS_pwritev, SYS_lseek, SYS_fsync, SYS_fdatasync, SYS_fadvise64,
    SYS_recvfrom, SYS_sendto,
    // memory
    SYS_brk, SYS_mremap, SYS_mincore,
    // time
    SYS_clock_nanosleep, SYS_nanosleep, SYS_clock_getres, SYS_gettimeofday, SYS_time,
    // threads and signals; tgkill, clone and prctl are below
    SYS_rseq, SYS_set_robust_list, SYS_get_robust_list, SYS_gettid, SYS_set_tid_address, SYS_sched_yield,
    SYS_sched_getaffinity, SYS_getcpu, SYS_membarrier, SYS_exit, SYS_exit_group, SYS_rt_sigaction,
    SYS_rt_sigreturn, SYS_rt_sigpending, SYS_rt_sigtimedwait, SYS_sigaltstack, SYS_restart_syscall, SYS_pause,
    // The first thread of a child lifts its threads' pinning. With the tid of a sibling's thread it could
    // move that to another processor, and no more.
    SYS_sched_setaffinity,
    // descriptors; there is nothing to open but /proc/self
    SYS_dup, SYS_dup3, SYS_eventfd2, SYS_signalfd4, SYS_epoll_create1, SYS_pipe2, SYS_fstat, SYS_newfstatat,
    SYS_getdents64, SYS_readlink, SYS_getsockopt, SYS_setsockopt, SYS_getsockname, SYS_shutdown,
    // of itself
    SYS_getpid, SYS_getppid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getrandom, SYS_uname,
    SYS_sysinfo};

/** What libslirp makes of a guest's connections, and QEMU of a guest that discards blocks of a disk of its
 * own. */
static const short for_sockets[] = {SYS_connect,  SYS_bind, SYS_getpeername, SYS_sendmmsg,
                                    SYS_recvmmsg, SYS_stat, SYS_fallocate,   SYS_ftruncate};

static void build(bool sockets) {
  length = 0;
  load(offsetof(struct seccomp_data, arch));
  emit(BPF_JMP | BPF_JEQ | BPF_K, 1, 0, AUDIT_ARCH_X86_64);
  finish(SECCOMP_RET_KILL_PROCESS);
  load(offsetof(struct seccomp_data, nr));
  for (size_t i = 0; i < sizeof always / sizeof *always; i++) allow(always[i]);

  if (sockets) {
    for (size_t i = 0; i < sizeof for_sockets / sizeof *for_sockets; i++) allow(for_sockets[i]);
    // Neither Unix sockets, of which the abstract ones need no file, nor netlink or packets.
    ALLOW_VALUES(SYS_socket, 0, AF_INET, AF_INET6);
  }

  // Only to read: not even the process's own memory may be written by way of /proc.
  allow_without(SYS_openat, 2, O_ACCMODE | O_CREAT | O_TRUNC | O_APPEND);
  // Not F_SETOWN and F_SETSIG, by which the kernel sends any signal to any process of the same user.
  ALLOW_VALUES(SYS_fcntl, 1, F_GETFL, F_SETFL, F_GETFD, F_SETFD, F_DUPFD, F_DUPFD_CLOEXEC, F_GET_SEALS);
  // What a guest's network driver sets on a tap that is there already, and what QEMU asks of it.
  ALLOW_VALUES(SYS_ioctl, 1, FIONBIO, FIONREAD, TUNSETOFFLOAD, TUNSETVNETHDRSZ, TUNSETVNETLE, TUNSETVNETBE,
               TUNSETQUEUE, TUNGETVNETHDRSZ, TUNGETFEATURES, TUNGETIFF);
  ALLOW_VALUES(SYS_socketpair, 0, AF_UNIX);
  // Signals that a sibling takes for a stray one: those that park threads, and QEMU's own kick.
  ALLOW_VALUES(SYS_tgkill, 2, (uint32_t)park_signal(), SIGUSR1);
  ALLOW_VALUES(SYS_setpgid, 0, 0);
  ALLOW_VALUES(SYS_prlimit64, 2, 0);  // reads them, sets none
  ALLOW_VALUES(SYS_arch_prctl, 0, 0x1002 /* ARCH_SET_FS */);
  ALLOW_VALUES(SYS_prctl, 0, PR_SET_NAME, PR_GET_NAME, PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, PR_SET_PDEATHSIG,
               PR_SET_THP_DISABLE, PR_SET_PTRACER);
  allow_without(SYS_clone, 0,
                CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |
                    CLONE_NEWNET | CLONE_PTRACE | CLONE_UNTRACED);
  // Its arguments lie in memory, where no filter can look; libc falls back to clone. HF_CGROUP_INTO needs it,
  // but who is in jail has no right to be born into a group anyway.
  fail_with(SYS_clone3, ENOSYS);
  finish(SECCOMP_RET_KILL_PROCESS);
}

bool seccomp_install(bool sockets, struct refusal* why) {
  build(sockets);
  const struct sock_fprog filter = {.len = length, .filter = program};
  *why = (struct refusal){HF_SYSCALL, E2BIG, "jail: seccomp"};
  if (length > INSTRUCTIONS_MAX) return false;
  const long result = sys(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter);
  // With TSYNC a positive result is the thread that could not be brought along.
  if (result > 0)
    *why = (struct refusal){HF_THREAD, (int)result, "jail: seccomp: a thread has a filter of its own"};
  if (result < 0) why->number = (int)-result;
  return result == 0;
}
