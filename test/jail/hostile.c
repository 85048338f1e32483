// In the place of QEMU: what could a program do that has taken over a monitor in jail? It waits for a number
// on a socket, tries what the number says, and answers with what came of it; some of it ends the process
// instead.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { COMMAND_FD = 10 };

struct command {
  int32_t what;
  int32_t victim;
};

struct answer {
  int32_t result;
  int32_t error;
  char text[504];
};

static struct answer answer;

static long list(const char* path) {
  DIR* directory = opendir(path);
  if (directory == NULL) return -1;
  for (struct dirent* one; (one = readdir(directory)) != NULL;) {
    if (one->d_name[0] == '.') continue;
    const size_t length = strlen(answer.text);
    snprintf(answer.text + length, sizeof answer.text - length, "%s ", one->d_name);
  }
  closedir(directory);
  return 0;
}

static long open_of(const char* format, int pid, int flags) {
  char path[64];
  snprintf(path, sizeof path, format, pid);
  return open(path, flags);
}

static long read_memory_of(int pid) {
  char byte;
  struct iovec here = {&byte, 1}, there = {&answer, 1};
  return process_vm_readv(pid, &here, 1, &there, 1, 0);
}

static long connect_unix(void) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  return connect(COMMAND_FD, (struct sockaddr*)&address, sizeof address);
}

static long clone3_user(void) {
  struct clone_args arguments = {.flags = CLONE_NEWUSER, .exit_signal = SIGCHLD};
  return syscall(SYS_clone3, &arguments, sizeof arguments);
}

/** The gate of 32-bit programs, where numbers mean other calls. 20 is getpid there. */
static long old_gate(void) {
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
  return result;
}

/** Processes until there are no more to be had. Their number; errno tells why. */
static long bomb(void) {
  for (int made = 0;; made++) {
    const long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid < 0) {
      snprintf(answer.text, sizeof answer.text, "%d %d", made, errno);
      return made;
    }
    if (pid == 0) {
      for (;;) pause();
    }
  }
}

/** A process that nobody was told of, and that outlives this one. */
static long get_away(void) {
  const long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (pid != 0) return pid;
  for (;;) pause();
}

static long attempt(int what, int victim) {
  static char* const none[] = {NULL};
  switch (what) {
    case 0:
      return getuid();
    case 1:
      return list("/");
    case 2:
      return list("/proc");
    case 3:
      return open("/etc/passwd", O_RDONLY);
    case 4:
      return open("/proc/self/root/../../etc/passwd", O_RDONLY);
    case 5:
      return open("/proc/self/mem", O_RDWR);
    case 6:
      return open("/file", O_WRONLY | O_CREAT, 0600);
    case 7:
      return open_of("/proc/%d/mem", victim, O_RDONLY);
    case 8:
      return open_of("/proc/%d/environ", victim, O_RDONLY);
    case 9:
      return read_memory_of(victim);
    case 10:
      return ptrace(PTRACE_ATTACH, victim, 0, 0);
    case 11:
      return kill(victim, SIGKILL);
    case 12:
      return syscall(SYS_tgkill, victim, victim, SIGKILL);
    case 13:
      return syscall(SYS_tgkill, victim, victim, SIGUSR1);
    case 14:
      return fcntl(COMMAND_FD, F_SETOWN, victim);
    case 15:
      return syscall(SYS_pidfd_open, victim, 0);
    case 16:
      return socket(AF_INET, SOCK_STREAM, 0);
    case 17:
      return socket(AF_UNIX, SOCK_STREAM, 0);
    case 18:
      return connect_unix();
    case 19:
      return setresuid(0, 0, 0);
    case 20:
      return unshare(CLONE_NEWUSER);
    case 21:
      return syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
    case 22:
      return clone3_user();
    case 23:
      return execve("/proc/self/exe", none, none);
    case 24:
      return mount("none", "/proc", "tmpfs", 0, NULL);
    case 25:
      return chroot("/proc");
    case 26:
      return syscall(SYS_bpf, 0, 0, 0);
    case 27:
      return syscall(SYS_io_uring_setup, 1, 0);
    case 28:
      return syscall(SYS_perf_event_open, 0, 0, 0, 0, 0);
    case 29:
      return syscall(SYS_keyctl, 0, 0, 0, 0, 0);
    case 30:
      return syscall(SYS_setns, COMMAND_FD, 0);
    case 31:
      return syscall(SYS_getpid | 0x40000000);
    case 32:
      return old_gate();
    case 33:
      return syscall(SYS_prctl, 4 /* PR_SET_DUMPABLE */, 1, 0, 0, 0);
    case 34:
      return syscall(SYS_prlimit64, 0, 7, &answer, NULL);
    case 35:
      return syscall(SYS_userfaultfd, 0);
    case 36:
      return bomb();
    case 37:
      return getppid();
    case 38:
      return get_away();
    default:
      errno = EINVAL;
      return -1;
  }
}

int main(void) {
  struct command command;
  fcntl(COMMAND_FD, F_SETFL, 0);
  // The engine that asks for a copy finds it in this read, and so does the copy.
  while (read(COMMAND_FD, &command, sizeof command) == sizeof command) {
    memset(&answer, 0, sizeof answer);
    answer.result = (int32_t)attempt(command.what, command.victim);
    answer.error = answer.result < 0 ? errno : 0;
    if (write(COMMAND_FD, &answer, sizeof answer) != sizeof answer) return 1;
  }
  return 0;
}
