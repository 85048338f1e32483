#include "culprit.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

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

// 0 when the thread is gone or of an inner pid namespace: NSpid then has more than one number.
int ProcessOf(int thread) {
  std::string status = ReadWhole("/proc/" + std::to_string(thread) + "/status");
  size_t tgid = status.find("\nTgid:\t");
  size_t nspid = status.find("\nNSpid:\t");
  if (tgid == std::string::npos || nspid == std::string::npos) return 0;
  size_t numbers = nspid + strlen("\nNSpid:\t");
  size_t end = status.find('\n', numbers);
  if (status.substr(numbers, end - numbers).find('\t') != std::string::npos) return 0;
  return atoi(status.c_str() + tgid + strlen("\nTgid:\t"));
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

Culprit FindCulprit(int thread, uint64_t address, dev_t device, ino_t inode) {
  Culprit culprit;
  int pid = thread > 0 ? ProcessOf(thread) : 0;
  if (pid <= 0 || pid == getpid()) return culprit;
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  // Asked once more after the descriptor fixes the process: the number cannot have gone to another.
  if (!pidfd.Valid() || ProcessOf(thread) != pid || !Maps(pid, address, device, inode)) return culprit;
  culprit.pid = pid;
  culprit.pidfd = std::move(pidfd);
  return culprit;
}

bool Kill(const UniqueFd& pidfd) {
  return syscall(SYS_pidfd_send_signal, pidfd.Get(), SIGKILL, nullptr, 0) == 0;
}

int PidOf(const UniqueFd& pidfd) {
  std::string info = ReadWhole("/proc/self/fdinfo/" + std::to_string(pidfd.Get()));
  size_t line = info.find("Pid:\t");
  int pid = line == std::string::npos ? 0 : atoi(info.c_str() + line + strlen("Pid:\t"));
  return pid > 0 ? pid : 0;
}

}  // namespace forkd
