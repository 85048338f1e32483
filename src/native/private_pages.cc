#include "private_pages.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>

#include "io.h"
#include "layer_format.h"

namespace forkd {

namespace {

// From linux/fs.h of Linux 6.7, which the headers of Debian 12 do not have yet.
struct ScanRegion {
  uint64_t start;
  uint64_t end;
  uint64_t categories;
};

struct ScanRequest {
  uint64_t size;
  uint64_t flags;
  uint64_t start;
  uint64_t end;
  uint64_t walk_end;
  uint64_t regions;
  uint64_t region_count;
  uint64_t pages_max;
  uint64_t category_inverted;
  uint64_t category_mask;
  uint64_t category_any_of_mask;
  uint64_t return_mask;
};

constexpr unsigned long kPagemapScan = _IOWR('f', 16, ScanRequest);
constexpr uint64_t kPageIsFile = 1 << 2;
constexpr uint64_t kPageIsPresent = 1 << 3;
constexpr uint64_t kPageIsSwapped = 1 << 4;

// An entry of /proc/PID/pagemap.
constexpr uint64_t kEntryFile = uint64_t{1} << 61;
constexpr uint64_t kEntrySwapped = uint64_t{1} << 62;
constexpr uint64_t kEntryPresent = uint64_t{1} << 63;

// read(2) to the end: files of /proc have no size.
SysError ReadAll(int fd, std::string* text) {
  size_t done = 0;
  for (;;) {
    text->resize(done + (64 << 10));
    ssize_t n = read(fd, text->data() + done, text->size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return SysError::Last("read maps");
    done += static_cast<size_t>(n);
    if (n == 0) break;
  }
  text->resize(done);
  return {};
}

}  // namespace

SysError PrivatePages::List(pid_t pid, int memfd, bool scan) {
  struct stat st;
  if (fstat(memfd, &st) != 0) return SysError::Last("fstat");
  device_ = st.st_dev;
  inode_ = st.st_ino;
  if (SysError error = RegularSize(memfd, &image_bytes_)) return error;

  pidfd_.Reset(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd_.Valid()) return SysError::Last("pidfd_open");
  std::string path = "/proc/" + std::to_string(pid);
  folder_.Reset(open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder_.Valid()) return Reason(SysError::Last("open /proc/PID"));

  if (SysError error = ReadMappings(&mappings_)) return Reason(error);
  if (mappings_.empty()) return Reason({"private mapping of the memory", ENXIO});
  UniqueFd pagemap(openat(folder_.Get(), "pagemap", O_RDONLY | O_CLOEXEC));
  if (!pagemap.Valid()) return Reason(SysError::Last("open pagemap"));
  for (const Mapping& mapping : mappings_) {
    SysError error = scan ? Scan(pagemap.Get(), mapping) : SysError{"ioctl", ENOTTY};
    // A kernel before 6.7 knows no ioctl here, and has then listed nothing.
    if (error.number == ENOTTY) error = ReadEntries(pagemap.Get(), mapping);
    if (error) return Reason(error);
  }
  return {};
}

SysError PrivatePages::Confirm() const {
  std::vector<Mapping> now;
  if (SysError error = ReadMappings(&now)) return Reason(error);
  if (Ended()) return {"read maps", ESRCH};
  // It has mapped or unmapped memory, or has run another program.
  if (now != mappings_) return {"read maps", ESTALE};
  return {};
}

SysError PrivatePages::Reason(SysError failed) const {
  return Ended() ? SysError{failed.syscall, ESRCH} : failed;
}

bool PrivatePages::Ended() const {
  struct pollfd waited = {pidfd_.Get(), POLLIN, 0};
  if (poll(&waited, 1, 0) == 1) return true;
  std::vector<Mapping> mappings;
  return folder_.Valid() && ReadMappings(&mappings).number == ESRCH;
}

// Ordered by offset. One image page that two mappings show could have two contents: EEXIST.
SysError PrivatePages::ReadMappings(std::vector<Mapping>* mappings) const {
  UniqueFd maps(openat(folder_.Get(), "maps", O_RDONLY | O_CLOEXEC));
  if (!maps.Valid()) return SysError::Last("open maps");
  std::string text;
  if (SysError error = ReadAll(maps.Get(), &text)) return error;
  // Its memory goes some time before the process has ended, and before the pidfd says so.
  if (text.empty()) return {"read maps", ESRCH};

  mappings->clear();
  for (const char* line = text.c_str(); *line;) {
    uint64_t begin, end, offset, inode;
    unsigned device_major, device_minor;
    char access[5];
    int fields = sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64, &begin, &end, access,
                        &offset, &device_major, &device_minor, &inode);
    if (fields == 7 && access[3] == 'p' && inode == inode_ &&
        makedev(device_major, device_minor) == device_ && offset < image_bytes_) {
      mappings->push_back({begin, std::min(end, begin + (image_bytes_ - offset)), offset});
    }
    const char* newline = strchr(line, '\n');
    if (!newline) break;
    line = newline + 1;
  }
  std::sort(mappings->begin(), mappings->end(),
            [](const Mapping& a, const Mapping& b) { return a.offset < b.offset; });
  for (size_t i = 1; i < mappings->size(); i++) {
    const Mapping& before = (*mappings)[i - 1];
    if (before.offset + (before.end - before.begin) > (*mappings)[i].offset) {
      return {"two private mappings of one page", EEXIST};
    }
  }
  return {};
}

SysError PrivatePages::Scan(int pagemap, const Mapping& mapping) {
  std::vector<ScanRegion> regions(1024);
  for (uint64_t address = mapping.begin; address < mapping.end;) {
    ScanRequest request = {};
    request.size = sizeof request;
    request.start = address;
    request.end = mapping.end;
    request.regions = reinterpret_cast<uint64_t>(regions.data());
    request.region_count = regions.size();
    // (present or swapped) and not of the file. Categories that are returned would divide the regions: none
    // is.
    request.category_inverted = kPageIsFile;
    request.category_mask = kPageIsFile;
    request.category_any_of_mask = kPageIsPresent | kPageIsSwapped;
    request.return_mask = kPageIsFile;
    int found = ioctl(pagemap, kPagemapScan, &request);
    if (found < 0) {
      if (errno == EINTR) continue;
      return SysError::Last("ioctl PAGEMAP_SCAN");
    }
    // Linux fills its own buffer of regions several times a call, and sets walk_end only when it ends with
    // that buffer full: walk_end may be before regions that this call has returned already. What was returned
    // last is where to go on.
    uint64_t reached = request.walk_end;
    for (int i = 0; i < found; i++) {
      const ScanRegion& region = regions[static_cast<size_t>(i)];
      AddRun(mapping, region.start, region.end);
      reached = std::max(reached, region.end);
    }
    if (reached <= address) return {"ioctl PAGEMAP_SCAN", EIO};
    address = reached;
  }
  return {};
}

SysError PrivatePages::ReadEntries(int pagemap, const Mapping& mapping) {
  std::vector<uint64_t> entries(64 << 10);
  for (uint64_t address = mapping.begin; address < mapping.end;) {
    size_t count = std::min<uint64_t>(entries.size(), (mapping.end - address) / kPageBytes);
    size_t bytes = count * sizeof(uint64_t), got;
    uint8_t* into = reinterpret_cast<uint8_t*>(entries.data());
    if (SysError error = ReadAt(pagemap, into, bytes, address / kPageBytes * sizeof(uint64_t), &got)) {
      return error;
    }
    if (got < bytes) return {"read pagemap", ESRCH};  // the memory is gone
    for (size_t i = 0; i < count; i++) {
      bool there = entries[i] & (kEntryPresent | kEntrySwapped);
      uint64_t at = address + i * kPageBytes;
      if (there && !(entries[i] & kEntryFile)) AddRun(mapping, at, at + kPageBytes);
    }
    address += count * kPageBytes;
  }
  return {};
}

void PrivatePages::AddRun(const Mapping& mapping, uint64_t begin, uint64_t end) {
  uint64_t page = (mapping.offset + (begin - mapping.begin)) / kPageBytes;
  uint64_t count = (end - begin) / kPageBytes;
  if (!runs_.empty()) {
    PageRun& last = runs_.back();
    if (last.page + last.count == page && last.address + last.count * kPageBytes == begin) {
      last.count += count;
      return;
    }
  }
  runs_.push_back({page, count, begin});
}

}  // namespace forkd
