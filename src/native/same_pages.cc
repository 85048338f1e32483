// Which pages of a file are also in some disks: what a guest has read of its disk lies in its memory as it
// lies on the disk, and its kernel as it was loaded.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <mutex>
#include <span>
#include <vector>

#include "addon.h"
#include "args.h"
#include "digest.h"
#include "error.h"
#include "frames.h"
#include "io.h"
#include "page.h"
#include "thread_call.h"

namespace forkd {

namespace {

// What a thread reads at once: mapping the files would cost a page fault every few pages, which some hosts
// make dear.
constexpr size_t kPartBytes = 1024 * 1024;
constexpr size_t kBlockBytes = 64 * 1024;
// What is read of the disk to compare a run with: most runs are shorter.
constexpr uint32_t kRunPages = 16;
constexpr uint32_t kNone = UINT32_MAX;
// No fingerprint is even.
constexpr uint64_t kZeroPrint = 0;

SysError PagesOf(int fd, uint32_t* pages) {
  uint64_t bytes = 0;
  if (SysError error = RegularSize(fd, &bytes)) return error;
  if (bytes / kPageBytes >= kNone) return {"file size", EFBIG};
  *pages = static_cast<uint32_t>(bytes / kPageBytes);
  return {};
}

// The whole pages of several files, counted through.
class DiskPages {
 public:
  struct Disk {
    int fd;
    uint64_t bytes;
    uint32_t begin;  // its first page
    uint32_t end;
  };

  SysError Open(std::span<const int> fds) {
    for (int fd : fds) {
      Disk disk = {fd, 0, pages(), 0};
      uint32_t own = 0;
      SysError error;
      if ((error = PagesOf(fd, &own)) || (error = RegularSize(fd, &disk.bytes))) return error;
      if (own >= kNone - disk.begin) return {"file size", EFBIG};
      disk.end = disk.begin + own;
      disks_.push_back(disk);
    }
    return {};
  }

  uint32_t pages() const { return disks_.empty() ? 0 : disks_.back().end; }
  std::span<const Disk> all() const { return disks_; }
  // Of a page that there is.
  const Disk& Of(uint32_t page) const {
    return *std::find_if(disks_.begin(), disks_.end(), [page](const Disk& disk) { return page < disk.end; });
  }

 private:
  std::vector<Disk> disks_;
};

// Some successive pages of a disk, in memory.
class Window {
 public:
  explicit Window(const DiskPages& disks) : disks_(disks), bytes_(size_t{kRunPages} * kPageBytes) {}

  // Null when it cannot be read: `error` says so.
  const uint8_t* Page(uint32_t page, SysError* error) {
    if (page < first_ || page >= first_ + count_) {
      const DiskPages::Disk& disk = disks_.Of(page);
      first_ = page;
      count_ = std::min(kRunPages, disk.end - page);
      size_t bytes = size_t{count_} * kPageBytes, done = 0;
      *error = ReadAt(disk.fd, bytes_.data(), bytes, uint64_t{page - disk.begin} * kPageBytes, &done);
      if (!*error && done < bytes) *error = {"pread", EIO};
      if (*error) {
        count_ = 0;
        return nullptr;
      }
    }
    return bytes_.data() + size_t{page - first_} * kPageBytes;
  }

 private:
  const DiskPages& disks_;
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
  return (all ^ all >> 32) | 1;
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
    size_t at = print >> 1 & (slots_.size() - 1);
    while (slots_[at].page != kNone && slots_[at].print != print) at = (at + 1) & (slots_.size() - 1);
    return slots_[at];
  }

  std::vector<Slot> slots_;
};

// Who looks for the pages of a file in disks. All are divided into parts that threads take one by one.
class PageSearch {
 public:
  // `blocks`: gets BLAKE3 of each 64 KiB of the first disk, unless empty.
  PageSearch(int file, std::vector<int> disks, std::span<uint8_t> blocks)
      : file_fd_(file), disk_fds_(std::move(disks)), blocks_(blocks) {}

  SysError Run(unsigned threads) {
    SysError error;
    if ((error = PagesOf(file_fd_, &file_pages_)) || (error = disks_.Open(disk_fds_))) return error;
    prints_.resize(disks_.pages());
    for (const DiskPages::Disk& disk : disks_.all()) {
      for (uint64_t at = 0; at < disk.bytes; at += kPartBytes) disk_parts_.push_back({&disk, at});
    }
    InParts(threads, disk_parts_.size(),
            [this](Window*, size_t part, uint8_t* buffer) { return ReadDisk(disk_parts_[part], buffer); });
    table_ = PageTable(disks_.pages());
    for (uint32_t page = 0; page < disks_.pages(); page++) {
      if (prints_[page] != kZeroPrint) table_.Add(prints_[page], page);
    }
    found_.resize((size_t{file_pages_} * kPageBytes + kPartBytes - 1) / kPartBytes);
    InParts(threads, found_.size(),
            [this](Window* disk, size_t part, uint8_t* buffer) { return FindRuns(disk, part, buffer); });
    return error_;
  }

  // [page of the file, page of the disk, count] each, in the order of the file.
  std::vector<uint32_t> Runs() const {
    std::vector<uint32_t> runs;
    for (const std::vector<uint32_t>& found : found_) {
      for (size_t i = 0; i < found.size(); i += 3) {
        size_t last = runs.size() - 3;
        // Only at the border of two parts.
        if (i == 0 && !runs.empty() && runs[last] + runs[last + 2] == found[0] &&
            runs[last + 1] + runs[last + 2] == found[1]) {
          runs[last + 2] += found[2];
        } else {
          runs.insert(runs.end(), {found[i], found[i + 1], found[i + 2]});
        }
      }
    }
    return runs;
  }

 private:
  template <typename Work>
  void InParts(unsigned threads, size_t parts, const Work& work) {
    std::atomic<size_t> next{0};
    InThreads(threads, [&](unsigned) {
      std::unique_ptr<uint8_t[]> buffer(new uint8_t[kPartBytes]);
      Window disk(disks_);
      for (size_t part; (part = next.fetch_add(1)) < parts;) {
        SysError error = work(&disk, part, buffer.get());
        if (!error) continue;
        std::lock_guard lock(mutex_);
        error_ = error;
        next = parts;
      }
    });
  }

  struct DiskPart {
    const DiskPages::Disk* disk;
    uint64_t begin;
  };

  SysError ReadDisk(const DiskPart& part, uint8_t* buffer) {
    const auto& [disk, begin] = part;
    size_t bytes = std::min<uint64_t>(kPartBytes, disk->bytes - begin), done;
    if (SysError error = ReadAt(disk->fd, buffer, bytes, begin, &done)) return error;
    if (done < bytes) return {"pread", EIO};
    for (size_t at = 0; at + kPageBytes <= bytes; at += kPageBytes) {
      const uint8_t* page = buffer + at;
      prints_[disk->begin + (begin + at) / kPageBytes] =
          IsZero(page, kPageBytes) ? kZeroPrint : Fingerprint(page);
    }
    if (disk != disks_.all().data()) return {};
    for (size_t at = 0; at < bytes && !blocks_.empty(); at += kBlockBytes) {
      Digest digest = DigestOf(buffer + at, std::min(kBlockBytes, bytes - at));
      memcpy(blocks_.data() + (begin + at) / kBlockBytes * digest.size(), digest.data(), digest.size());
    }
    return {};
  }

  // The next page of a run is tried first: runs get long.
  SysError FindRuns(Window* disk, size_t part, uint8_t* buffer) {
    uint32_t first = static_cast<uint32_t>(uint64_t{part} * kPartBytes / kPageBytes);
    uint32_t pages = std::min<uint32_t>(kPartBytes / kPageBytes, file_pages_ - first);
    size_t done;
    if (SysError error =
            ReadAt(file_fd_, buffer, size_t{pages} * kPageBytes, uint64_t{first} * kPageBytes, &done)) {
      return error;
    }
    if (done < size_t{pages} * kPageBytes) return {"pread", EIO};
    SysError error;
    std::vector<uint32_t>& runs = found_[part];
    uint32_t next = kNone;  // where the disk goes on behind the last run
    for (uint32_t i = 0; i < pages; i++) {
      const uint8_t* content = buffer + size_t{i} * kPageBytes;
      auto equals = [&](uint32_t disk_page) {
        const uint8_t* same = disk->Page(disk_page, &error);
        return same && memcmp(same, content, kPageBytes) == 0;
      };
      if (next < disks_.pages() && equals(next)) {
        runs.back()++;
        next++;
        continue;
      }
      next = kNone;
      if (IsZero(content, kPageBytes)) continue;
      uint32_t found = table_.Find(Fingerprint(content));
      if (found == kNone || !equals(found)) {
        if (error) return error;
        continue;
      }
      runs.insert(runs.end(), {first + i, found, 1});
      next = found + 1;
    }
    return {};
  }

  const int file_fd_;
  const std::vector<int> disk_fds_;
  const std::span<uint8_t> blocks_;
  uint32_t file_pages_ = 0;
  DiskPages disks_;
  std::vector<DiskPart> disk_parts_;
  std::vector<uint64_t> prints_;
  PageTable table_{0};
  std::vector<std::vector<uint32_t>> found_;
  std::mutex mutex_;
  SysError error_;
};

Napi::Value SamePages(const Napi::CallbackInfo& info) {
  Args args(info);
  int file_fd = args.Fd(0, "file");
  std::vector<int> disks = args.Fds(1, "disks");
  int threads = args.Int(2, "threads", 1, kFrameThreadsMax);
  std::span<uint8_t> blocks;
  if (args.Ok() && disks.empty()) args.Refuse("disks", "one at least");
  uint64_t disk_bytes = 0;
  if (args.Ok() && !info[3].IsUndefined()) {
    blocks = args.Bytes(3, "blocks");
    if (SysError error = RegularSize(disks[0], &disk_bytes)) return ThrowSysError(info.Env(), error);
    if (blocks.size() != (disk_bytes + kBlockBytes - 1) / kBlockBytes * sizeof(Digest)) {
      args.Refuse("blocks", "32 bytes for each 64 KiB of the first disk");
    }
  }
  if (!args.Ok()) return {};

  auto search = std::make_shared<PageSearch>(file_fd, std::move(disks), blocks);
  auto error = std::make_shared<SysError>();
  ThreadCall call;
  call.work = [=] { *error = search->Run(static_cast<unsigned>(threads)); };
  call.finish = [=](Napi::Env env) -> Napi::Value {
    if (*error) return ThrowSysError(env, *error);
    std::vector<uint32_t> runs = search->Runs();
    Napi::Uint32Array result = Napi::Uint32Array::New(env, runs.size());
    if (!result.IsEmpty() && !runs.empty())
      memcpy(result.Data(), runs.data(), runs.size() * sizeof(uint32_t));
    return result;
  };
  call.stop = [] {};
  if (info[3].IsUndefined()) return ThreadCall::Start(info.Env(), {}, std::move(call));
  return ThreadCall::Start(info.Env(), {info[3]}, std::move(call));
}

}  // namespace

void RegisterSamePages(Napi::Env env, Napi::Object exports) {
  Export<SamePages>(env, exports, "samePages");
}

}  // namespace forkd
