// Which pages of one file are also in another: what a guest has read of its disk lies in its memory as it
// lies on the disk.
#include <bit>
#include <cstring>
#include <vector>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "io.h"

namespace forkd {

namespace {

constexpr size_t kPageBytes = 4096;
// Mapping the files would cost a page fault every few pages, which some hosts make dear.
constexpr uint32_t kWindowPages = 256;
// What is read of the disk to compare a run with: most runs are shorter.
constexpr uint32_t kRunPages = 16;
constexpr uint32_t kNone = UINT32_MAX;

// Some successive pages of a file, in memory.
class Window {
 public:
  Window(int fd, uint32_t pages) : fd_(fd), bytes_(size_t{pages} * kPageBytes) {}

  // Null when the file has no such page, or cannot be read: then `error` says so.
  const uint8_t* Page(uint32_t page, SysError* error) {
    if (page < first_ || page >= first_ + count_) {
      size_t done = 0;
      *error = ReadAt(fd_, bytes_.data(), bytes_.size(), uint64_t{page} * kPageBytes, &done);
      first_ = page;
      count_ = *error ? 0 : static_cast<uint32_t>(done / kPageBytes);
      if (count_ == 0) return nullptr;
    }
    return bytes_.data() + size_t{page - first_} * kPageBytes;
  }

 private:
  int fd_;
  std::vector<uint8_t> bytes_;
  uint32_t first_ = 0;
  uint32_t count_ = 0;
};

// Only a hint where to look: pages are compared before they count as equal. Four lanes, so that the
// multiplications overlap.
uint64_t Fingerprint(const uint8_t* page) {
  constexpr uint64_t kOdd = 0x9E3779B97F4A7C15;
  uint64_t lanes[4] = {1, 2, 3, 4};
  for (size_t at = 0; at < kPageBytes; at += sizeof lanes) {
    uint64_t words[4];
    memcpy(words, page + at, sizeof words);
    for (int i = 0; i < 4; i++) lanes[i] = (std::rotl(lanes[i], 23) ^ words[i]) * kOdd;
  }
  uint64_t all = lanes[0];
  for (int i = 1; i < 4; i++) all = (std::rotl(all, 29) ^ lanes[i]) * kOdd;
  return all ^ all >> 32;
}

// Pages by fingerprint, with open addressing. Of equal fingerprints the first page is kept, so equal pages
// cost nothing.
class PageTable {
 public:
  explicit PageTable(uint32_t pages) : slots_(std::bit_ceil(size_t{pages} * 2 + 1)) {}

  void Add(uint64_t print, uint32_t page) {
    Slot& slot = SlotOf(print);
    if (slot.page == kNone) slot = {print, page};
  }

  uint32_t Find(uint64_t print) { return SlotOf(print).page; }

 private:
  struct Slot {
    uint64_t print = 0;
    uint32_t page = kNone;
  };

  Slot& SlotOf(uint64_t print) {
    size_t at = print & (slots_.size() - 1);
    while (slots_[at].page != kNone && slots_[at].print != print) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }

  std::vector<Slot> slots_;
};

SysError PagesOf(int fd, uint32_t* pages) {
  uint64_t bytes;
  if (SysError error = RegularSize(fd, &bytes)) return error;
  if (bytes / kPageBytes >= kNone) return {"file size", EFBIG};
  *pages = static_cast<uint32_t>(bytes / kPageBytes);
  return {};
}

// Runs as [page of the file, page of the disk, count] each, in the order of the file. The next page of a run
// is tried first: runs get long.
SysError FindRuns(int file_fd, int disk_fd, std::vector<uint32_t>* runs) {
  SysError error;
  uint32_t file_pages, disk_pages;
  if ((error = PagesOf(file_fd, &file_pages)) || (error = PagesOf(disk_fd, &disk_pages))) return error;
  PageTable table(disk_pages);
  Window disk(disk_fd, kWindowPages);
  for (uint32_t page = 0; page < disk_pages; page++) {
    const uint8_t* content = disk.Page(page, &error);
    if (!content) return error;
    if (!IsZero(content, kPageBytes)) table.Add(Fingerprint(content), page);
  }
  Window file(file_fd, kWindowPages);
  Window other(disk_fd, kRunPages);
  uint32_t next = kNone;  // where the disk goes on behind the last run
  for (uint32_t page = 0; page < file_pages; page++) {
    const uint8_t* content = file.Page(page, &error);
    if (!content) return error;
    auto equals = [&](uint32_t disk_page) {
      const uint8_t* same = other.Page(disk_page, &error);
      return same && memcmp(same, content, kPageBytes) == 0;
    };
    if (next < disk_pages && equals(next)) {
      runs->back()++;
      next++;
      continue;
    }
    next = kNone;
    if (IsZero(content, kPageBytes)) continue;
    uint32_t found = table.Find(Fingerprint(content));
    if (found == kNone || !equals(found)) {
      if (error) return error;
      continue;
    }
    runs->insert(runs->end(), {page, found, 1});
    next = found + 1;
  }
  return {};
}

Napi::Value SamePages(const Napi::CallbackInfo& info) {
  Args args(info);
  int file_fd = args.Fd(0, "file");
  int disk_fd = args.Fd(1, "disk");
  if (!args.Ok()) return {};

  std::vector<uint32_t> runs;
  if (SysError error = FindRuns(file_fd, disk_fd, &runs)) return ThrowSysError(info.Env(), error);
  Napi::Uint32Array result = Napi::Uint32Array::New(info.Env(), runs.size());
  // In a worker that is being terminated nothing can be made any more.
  if (result.IsEmpty()) return {};
  if (!runs.empty()) memcpy(result.Data(), runs.data(), runs.size() * sizeof(uint32_t));
  return result;
}

}  // namespace

void RegisterSamePages(Napi::Env env, Napi::Object exports) {
  Export<SamePages>(env, exports, "samePages");
}

}  // namespace forkd
