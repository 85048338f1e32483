// Between clone and execve. The child shares the parent's memory (CLONE_VM), whose other threads go on
// running and may hold any lock: only async-signal-safe calls, no allocation, no lock, no JavaScript.
#include <fcntl.h>
#include <linux/close_range.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string_view>

#include "spawn.h"

namespace forkd {

namespace {

bool WriteAll(int fd, const char* text, size_t bytes) {
  ssize_t n;
  do {
    n = write(fd, text, bytes);
  } while (n < 0 && errno == EINTR);
  return n == static_cast<ssize_t>(bytes);  // control files take a write whole or fail it
}

// As /proc numbers it, which is still the parent's: getppid(2) is 0 when the parent is outside of the pid
// namespace, and stays 0. -1 when it cannot be told.
pid_t ParentInProc() {
  char text[512];
  const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  const ssize_t bytes = read(fd, text, sizeof text - 1);
  close(fd);
  if (bytes <= 0) return -1;
  text[bytes] = '\0';
  // `pid (name) state ppid`; the name may hold anything.
  const char* end = strrchr(text, ')');
  return end == nullptr || strlen(end) < 5 ? -1 : atoi(end + 4);
}

SysError DieWithParent(const SpawnPlan& plan) {
  if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return SysError::Last("prctl");
  // The parent may have died before the line above: then no signal will come.
  const pid_t parent = plan.init ? ParentInProc() : getppid();
  if (parent != plan.parent && parent != -1) _exit(127);
  return {};
}

// "0" means the writer itself.
SysError JoinCgroups(const std::vector<int>& cgroups) {
  for (int fd : cgroups) {
    if (!WriteAll(fd, "0", 1)) return SysError::Last("write cgroup.procs");
  }
  return {};
}

SysError WriteFile(const char* path, std::string_view text) {
  const int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return SysError::Last("open of a user namespace's map");
  if (!WriteAll(fd, text.data(), text.size())) return SysError::Last("write of a user namespace's map");
  return {};  // close_range takes the descriptor
}

// A mount namespace begins as a copy, and mounts made in it would appear outside: private, before anything is
// mounted.
SysError Unshare(const SpawnPlan& plan) {
  // The user namespace is made first, and owns the others. A midwife has made it.
  if (!plan.init) {
    if (SysError error = EnterUserNamespace(plan)) return error;
  }
  if (plan.unshare == 0) return {};
  if (unshare(plan.unshare) != 0) return SysError::Last("unshare");
  if ((plan.unshare & CLONE_NEWNS) == 0) return {};
  if (mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return SysError::Last("mount");
  return {};
}

SysError SetLimits(const std::vector<ResourceLimit>& limits) {
  for (const ResourceLimit& limit : limits) {
    rlimit now;
    if (getrlimit(limit.resource, &now) != 0) return SysError::Last("getrlimit");
    // One that is lower already stays: only with a capability could it be raised.
    rlim_t most = limit.value < now.rlim_max ? limit.value : now.rlim_max;
    rlimit next = {most < now.rlim_cur ? most : now.rlim_cur, most};
    if (setrlimit(limit.resource, &next) != 0) return SysError::Last("setrlimit");
  }
  return {};
}

// Sharing memory with the parent would share this value too, but the kernel excepts vfork children.
SysError SetOomScore(const std::string& value) {
  int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return SysError::Last("open oom_score_adj");
  if (!WriteAll(fd, value.data(), value.size())) return SysError::Last("write oom_score_adj");
  return {};  // close_range takes the descriptor
}

// Where a filter forbids it, it is scheduled as any program.
void ScheduleAsBatch() {
  const sched_param parameters = {};
  (void)sched_setscheduler(0, SCHED_BATCH, &parameters);
}

SysError CloseRange(unsigned first, unsigned last) {
  // Through syscall(2): the glibc of older systems has no wrapper.
  if (syscall(SYS_close_range, first, last, 0) != 0) return SysError::Last("close_range");
  return {};
}

// First every source moves above the highest target, then each goes to its place. So the mapping may swap,
// rotate or repeat descriptors: no target is overwritten while it is still somebody's source.
SysError PlaceFds(std::vector<FdMapping>& fds) {
  int above = fds.empty() ? 0 : fds.back().target + 1;
  for (FdMapping& fd : fds) {
    fd.moved = fcntl(fd.source, F_DUPFD_CLOEXEC, above);
    if (fd.moved < 0) return SysError::Last("fcntl");
  }
  unsigned next = 0;
  for (const FdMapping& fd : fds) {
    if (dup3(fd.moved, fd.target, 0) < 0) return SysError::Last("dup3");
    unsigned target = static_cast<unsigned>(fd.target);
    if (target > next) {
      if (SysError error = CloseRange(next, target - 1)) return error;
    }
    next = target + 1;
  }
  return CloseRange(next, ~0u);
}

// Ignored signals and the signal mask survive execve; Node ignores SIGPIPE and the clone was made with all
// blocked. Through the system calls: libc hides its two internal signals from its own functions.
void ResetSignals() {
  struct {
    void (*handler)(int) = SIG_DFL;
    unsigned long flags = 0;
    void (*restorer)() = nullptr;
    unsigned long mask = 0;
  } defaults;
  for (int signal = 1; signal <= 64; signal++) {
    syscall(SYS_rt_sigaction, signal, &defaults, nullptr, sizeof defaults.mask);
  }
  unsigned long none = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, nullptr, sizeof none);
}

}  // namespace

SysError EnterUserNamespace(const SpawnPlan& plan) {
  if (plan.uid_map.empty()) return {};
  if (unshare(CLONE_NEWUSER) != 0) return SysError::Last("unshare");
  // Without a capability outside, a process may map itself alone, and only when it can give up no group.
  if (SysError error = WriteFile("/proc/self/setgroups", "deny")) return error;
  if (SysError error = WriteFile("/proc/self/uid_map", plan.uid_map)) return error;
  return WriteFile("/proc/self/gid_map", plan.gid_map);
}

SysError RunInit(SpawnPlan& plan) {
  InitPlan& init = *plan.init;
  if (setpgid(0, 0) != 0) return SysError::Last("setpgid");
  if (SysError error = PlaceFds(init.fds)) return error;
  if (chdir("/") != 0) return SysError::Last("chdir");
  ResetSignals();
  char* const nothing[] = {nullptr};
  execve(init.file.c_str(), init.argv.data(), nothing);
  return SysError::Last("execve");
}

SysError RunChild(SpawnPlan& plan) {
  if (setpgid(0, 0) != 0) return SysError::Last("setpgid");
  if (plan.die_with_parent) {
    if (SysError error = DieWithParent(plan)) return error;
  }
  // Cgroups, namespace and score use descriptors that the mapping is about to close.
  if (SysError error = JoinCgroups(plan.cgroups)) return error;
  if (!plan.oom_score_adj.empty()) {
    if (SysError error = SetOomScore(plan.oom_score_adj)) return error;
  }
  if (plan.netns >= 0 && setns(plan.netns, CLONE_NEWNET) != 0) return SysError::Last("setns");
  if (SysError error = Unshare(plan)) return error;
  if (SysError error = PlaceFds(plan.fds)) return error;
  if (SysError error = SetLimits(plan.limits)) return error;
  if (plan.batch) ScheduleAsBatch();
  if (plan.cwd && chdir(plan.cwd->c_str()) != 0) return SysError::Last("chdir");
  ResetSignals();
  execve(plan.file.c_str(), plan.argv.data(), plan.envp.data());
  return SysError::Last("execve");
}

}  // namespace forkd
