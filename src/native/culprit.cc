#include "culprit.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace forkd {

namespace {

std::string ReadWhole(const std::string& path) {
  std::string text;
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.Valid()) return text;
  char buffer[4096];
  ssize_t bytes;
  while ((bytes = read(fd.Get(), buffer, sizeof buffer)) > 0) text.append(buffer, static_cast<size_t>(bytes));
  return text;
}

// The number of a thread in the innermost of its pid namespaces, the last of NSpid; 0 when it is gone.
int InnerNumber(const std::string& task) {
  std::string status = ReadWhole(task + "/status");
  size_t nspid = status.find("\nNSpid:\t");
  if (nspid == std::string::npos) return 0;
  size_t end = status.find('\n', nspid + 1);
  size_t last = status.rfind('\t', end);
  return last == std::string::npos ? 0 : atoi(status.c_str() + last + 1);
}

// The numbers that a directory of /proc lists.
std::vector<int> NumbersIn(const std::string& path) {
  std::vector<int> numbers;
  std::unique_ptr<DIR, int (*)(DIR*)> directory(opendir(path.c_str()), closedir);
  if (!directory) return numbers;
  while (dirent* entry = readdir(directory.get())) {
    if (int number = atoi(entry->d_name); number > 0) numbers.push_back(number);
  }
  return numbers;
}

bool HasThread(int pid, ino_t pid_namespace, int thread) {
  if (PidNamespaceOf(pid) != pid_namespace) return false;
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  for (int task : NumbersIn(tasks)) {
    if (InnerNumber(tasks + "/" + std::to_string(task)) == thread) return true;
  }
  return false;
}

// By looking at every process: nothing leads from a number of another namespace to one of ours. 0 when there
// is none.
int ProcessOf(int thread, ino_t pid_namespace) {
  for (int pid : NumbersIn("/proc")) {
    if (HasThread(pid, pid_namespace, thread)) return pid;
  }
  return 0;
}

bool Maps(int pid, uint64_t address, dev_t device, ino_t inode) {
  std::string maps = ReadWhole("/proc/" + std::to_string(pid) + "/maps");
  for (size_t at = 0; at < maps.size();) {
    size_t line_end = std::min(maps.find('\n', at), maps.size());
    uint64_t begin, end, file;
    unsigned major_number, minor_number;
    if (sscanf(maps.c_str() + at, "%" SCNx64 "-%" SCNx64 " %*s %*s %x:%x %" SCNu64, &begin, &end,
               &major_number, &minor_number, &file) == 5 &&
        address >= begin && address < end) {
      return inode == 0 || (file == inode && makedev(major_number, minor_number) == device);
    }
    at = line_end + 1;
  }
  return false;
}

}  // namespace

ino_t PidNamespaceOf(int pid) {
  struct stat status;
  return stat(("/proc/" + std::to_string(pid) + "/ns/pid").c_str(), &status) == 0 ? status.st_ino : 0;
}

Culprit FindCulprit(int thread, ino_t pid_namespace, uint64_t address, dev_t device, ino_t inode) {
  Culprit culprit;
  int pid = thread > 0 && pid_namespace != 0 ? ProcessOf(thread, pid_namespace) : 0;
  if (pid <= 0 || pid == getpid()) return culprit;
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  // Asked once more after the descriptor fixes the process: the number cannot have gone to another.
  if (!pidfd.Valid() || !HasThread(pid, pid_namespace, thread) || !Maps(pid, address, device, inode))
    return culprit;
  culprit.pid = pid;
  culprit.pidfd = std::move(pidfd);
  return culprit;
}

bool Kill(const UniqueFd& pidfd) {
  return syscall(SYS_pidfd_send_signal, pidfd.Get(), SIGKILL, nullptr, 0) == 0;
}

int PidOf(int pidfd) {
  std::string info = ReadWhole("/proc/self/fdinfo/" + std::to_string(pidfd));
  size_t line = info.find("Pid:\t");
  int pid = line == std::string::npos ? 0 : atoi(info.c_str() + line + strlen("Pid:\t"));
  return pid > 0 ? pid : 0;
}

}  // namespace forkd
