// crash-points DIR STATES LOG KILL CMD...: runs CMD, and looks at every system call by which it, in any
// thread, changes files below DIR, at the moment before the kernel does it. What is then on disk is what a
// kill -9 at that moment leaves.
//
// KILL 0: copies DIR to STATES/N before the Nth such call. KILL N: ends CMD by SIGKILL before the Nth. Writes
// a line for each call to LOG: its name and its path below DIR. Exits as CMD does, with 137 when it was
// killed, and with 3 when CMD does something that cannot be seen this way.
//
// The calls are found by a seccomp filter, so none is missed, whichever library makes it.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

// Where a call says which file it changes.
enum where {
  BY_FD,       // the first argument
  BY_FD_3RD,   // the third: what copy_file_range and splice write to
  BY_PATH,     // the first argument
  BY_PATH_AT,  // the second, from the directory that is the first
  TO_PATH,     // the second argument (rename, link: both names are below DIR)
  TO_PATH_AT,  // the fourth, from the third
  OPENED,      // as BY_PATH, if the flags (the second argument) change anything
  OPENED_AT,
  UNSEEN,
};

static const struct call {
  int number;
  const char* name;
  enum where where;
} calls[] = {
    {SYS_open, "open", OPENED},
    {SYS_openat, "open", OPENED_AT},
    {SYS_openat2, "openat2", UNSEEN},
    {SYS_creat, "creat", BY_PATH},
    {SYS_write, "write", BY_FD},
    {SYS_pwrite64, "pwrite", BY_FD},
    {SYS_writev, "writev", BY_FD},
    {SYS_pwritev, "pwritev", BY_FD},
    {SYS_pwritev2, "pwritev", BY_FD},
    {SYS_sendfile, "sendfile", BY_FD},
    {SYS_copy_file_range, "copy_file_range", BY_FD_3RD},
    {SYS_splice, "splice", BY_FD_3RD},
    {SYS_ioctl, "ioctl", BY_FD},
    {SYS_ftruncate, "ftruncate", BY_FD},
    {SYS_truncate, "truncate", BY_PATH},
    {SYS_fallocate, "fallocate", BY_FD},
    {SYS_fsync, "fsync", BY_FD},
    {SYS_fdatasync, "fsync", BY_FD},
    {SYS_fchmod, "chmod", BY_FD},
    {SYS_chmod, "chmod", BY_PATH},
    {SYS_fchmodat, "chmod", BY_PATH_AT},
    {SYS_mkdir, "mkdir", BY_PATH},
    {SYS_mkdirat, "mkdir", BY_PATH_AT},
    {SYS_rmdir, "rmdir", BY_PATH},
    {SYS_unlink, "unlink", BY_PATH},
    {SYS_unlinkat, "unlink", BY_PATH_AT},
    {SYS_rename, "rename", TO_PATH},
    {SYS_renameat, "rename", TO_PATH_AT},
    {SYS_renameat2, "rename", TO_PATH_AT},
    {SYS_link, "link", TO_PATH},
    {SYS_linkat, "link", TO_PATH_AT},
    {SYS_symlink, "symlink", TO_PATH},
    {SYS_symlinkat, "symlink", TO_PATH_AT},
    {SYS_io_uring_setup, "io_uring_setup", UNSEEN},
};
enum { CALLS = sizeof calls / sizeof *calls };

static const char* dir;

static void fail(const char* what) {
  fprintf(stderr, "crash-points: %s: %s\n", what, strerror(errno));
  _exit(3);
}

static void filter(void) {
  struct sock_filter program[CALLS + 3] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
  };
  for (int i = 0; i < CALLS; i++)
    program[1 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i].number,
                                                  (unsigned char)(CALLS - i), 0);
  program[1 + CALLS] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
  program[2 + CALLS] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE);
  struct sock_fprog all = {CALLS + 3, program};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &all) != 0)
    fail("seccomp");
}

static void link_of(pid_t thread, const char* name, char* path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/%d/%s", thread, name);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = '\0';
}

static void path_of_fd(pid_t thread, int fd, char* path) {
  char name[32];
  snprintf(name, sizeof name, "fd/%d", fd);
  link_of(thread, fd == AT_FDCWD ? "cwd" : name, path);
}

static void path_at(pid_t thread, int from, unsigned long address, char* path) {
  char text[PATH_MAX] = "";
  // Up to the end of the page that the text is in, and one more: a text may end where memory does.
  for (size_t done = 0; done < sizeof text - 1 && !memchr(text, '\0', done);) {
    size_t part = 4096 - (address + done) % 4096;
    if (part > sizeof text - 1 - done) part = sizeof text - 1 - done;
    struct iovec here = {text + done, part}, there = {(void*)(address + done), part};
    if (process_vm_readv(thread, &here, 1, &there, 1, 0) <= 0) break;
    done += part;
  }
  path_of_fd(thread, from, path);
  if (text[0] == '/')
    strcpy(path, text);
  else if (strlen(path) + strlen(text) + 2 < PATH_MAX)
    strcat(strcat(path, "/"), text);
}

static bool changes(unsigned long flags) {
  return flags & (O_CREAT | O_TRUNC);
}

// The path that the call changes, "" when it changes none.
static void path_of(pid_t thread, const struct call* call, const struct user_regs_struct* regs, char* path) {
  path[0] = '\0';
  switch (call->where) {
    case BY_FD:
      return path_of_fd(thread, (int)regs->rdi, path);
    case BY_FD_3RD:
      return path_of_fd(thread, (int)regs->rdx, path);
    case BY_PATH:
      return path_at(thread, AT_FDCWD, regs->rdi, path);
    case BY_PATH_AT:
      return path_at(thread, (int)regs->rdi, regs->rsi, path);
    case TO_PATH:
      return path_at(thread, AT_FDCWD, regs->rsi, path);
    case TO_PATH_AT:
      return path_at(thread, (int)regs->rdx, regs->r10, path);
    case OPENED:
      if (changes(regs->rsi)) path_at(thread, AT_FDCWD, regs->rdi, path);
      return;
    case OPENED_AT:
      if (changes(regs->rdx)) path_at(thread, (int)regs->rdi, regs->rsi, path);
      return;
    case UNSEEN:
      return;
  }
}

static const char* below(const char* path) {
  size_t length = strlen(dir);
  return strncmp(path, dir, length) == 0 && path[length] == '/' ? path + length + 1 : NULL;
}

static void copy_to(const char* states, int step) {
  char target[PATH_MAX];
  snprintf(target, sizeof target, "%s/%d", states, step);
  pid_t child = fork();
  if (child == 0) {
    execlp("cp", "cp", "-a", "--sparse=always", dir, target, NULL);
    _exit(127);
  }
  int status;
  if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail("cp");
}

int main(int count, char** arguments) {
  if (count < 6) {
    fprintf(stderr, "usage: crash-points DIR STATES LOG KILL CMD...\n");
    return 3;
  }
  dir = arguments[1];
  FILE* log = fopen(arguments[3], "we");
  int kill_at = atoi(arguments[4]), step = 0;
  if (!log) fail(arguments[3]);
  pid_t first = fork();
  if (first == 0) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    filter();
    execvp(arguments[5], arguments + 5);
    fail(arguments[5]);
  }
  int status;
  if (first < 0 || waitpid(first, &status, 0) != first || !WIFSTOPPED(status)) fail("ptrace");
  long options = PTRACE_O_EXITKILL | PTRACE_O_TRACESECCOMP | PTRACE_O_TRACECLONE | PTRACE_O_TRACEFORK |
                 PTRACE_O_TRACEVFORK | PTRACE_O_TRACEEXEC;
  if (ptrace(PTRACE_SETOPTIONS, first, 0, options) != 0) fail("ptrace");
  ptrace(PTRACE_CONT, first, 0, 0);
  for (;;) {
    pid_t thread = waitpid(-1, &status, __WALL);
    if (thread < 0) fail("waitpid");
    if (thread == first && WIFEXITED(status)) return WEXITSTATUS(status);
    if (thread == first && WIFSIGNALED(status)) return 128 + WTERMSIG(status);
    if (!WIFSTOPPED(status)) continue;
    int event = status >> 16, signal = WSTOPSIG(status);
    if (event == PTRACE_EVENT_SECCOMP) {
      struct user_regs_struct regs;
      if (ptrace(PTRACE_GETREGS, thread, 0, &regs) != 0) continue;  // it was killed
      const struct call* call = calls;
      while (call < calls + CALLS - 1 && call->number != (int)regs.orig_rax) call++;
      char path[PATH_MAX];
      path_of(thread, call, &regs, path);
      const char* name = below(path);
      if (call->where == UNSEEN) {
        fprintf(stderr, "crash-points: %s\n", call->name);
        return 3;
      }
      if (name) {
        fprintf(log, "%s %s\n", call->name, name);
        fflush(log);
        if (++step == kill_at) {
          kill(first, SIGKILL);
          // The process has ended when all its threads have.
          do thread = waitpid(-1, &status, __WALL);
          while (thread >= 0 && !(thread == first && WIFSIGNALED(status)));
          return 128 + SIGKILL;
        }
        if (kill_at == 0) copy_to(arguments[2], step);
      }
    }
    // A thread that has just been made stops by a SIGSTOP of the kernel's, which is not for it; nor are those
    // of events.
    bool is_its_own = event == 0 && signal != SIGSTOP && signal != SIGTRAP;
    ptrace(PTRACE_CONT, thread, 0, is_its_own ? signal : 0);
  }
}
