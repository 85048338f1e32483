#include "frame_reader.h"

#include <fcntl.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "io.h"

namespace forkd {

namespace {

// Shorter runs of zeros are written: a hole costs the file system an extent.
constexpr uint64_t kHoleBytes = 16 * 1024;
// Longer runs get their blocks at once: looking for them block by block is a third of what a write costs.
constexpr uint64_t kReservedBytes = 128 * 1024;

SysError WriteRun(int fd, const uint8_t* from, size_t bytes, uint64_t offset) {
  bool is_long = bytes >= kReservedBytes;
  // Not every file system can.
  if (is_long && fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) != 0 &&
      errno == ENOSPC) {
    return SysError::Last("fallocate");
  }
  return WriteAt(fd, from, bytes, offset);
}

// The memory may have data before and after; nothing is written where whole blocks of it are zero.
SysError WriteSparse(int fd, const uint8_t* from, size_t bytes, uint64_t offset) {
  size_t begin = 0;
  for (size_t at = 0; at < bytes;) {
    size_t block = std::min<uint64_t>(kHoleBytes - (offset + at) % kHoleBytes, bytes - at);
    if (IsZero(from + at, block)) {
      if (SysError error = WriteRun(fd, from + begin, at - begin, offset + begin)) return error;
      begin = at + block;
    }
    at += block;
  }
  return WriteRun(fd, from + begin, bytes - begin, offset + begin);
}

}  // namespace

struct FrameReader::Buffers {
  Buffers(size_t stored_bytes, size_t content_bytes)
      : stored(new uint8_t[stored_bytes]), content(new uint8_t[content_bytes]), zstd(ZSTD_createDCtx()) {}
  ~Buffers() { ZSTD_freeDCtx(zstd); }
  Buffers(const Buffers&) = delete;

  std::unique_ptr<uint8_t[]> stored, content;
  ZSTD_DCtx* zstd;
};

FrameReader::FrameReader(int pack, std::vector<Frame> frames, std::vector<Segment> segments,
                         std::span<uint8_t> aside, size_t split, std::vector<Part> hashed,
                         std::unique_ptr<FrameCheck> check, int folder, FrameProgress progress)
    : pack_(pack),
      frames_(std::move(frames)),
      segments_(std::move(segments)),
      aside_(aside),
      hashed_(std::move(hashed)),
      check_(std::move(check)),
      progress_(progress),
      wanted_(frames_.size()),
      split_(split),
      writeback_(folder),
      hashes_(hashed_.size()),
      turn_(split) {
  uint64_t at = 0, begin = 0;
  for (const Frame& frame : frames_) {
    ats_.push_back(at);
    begins_.push_back(begin);
    at += frame.stored;
    begin += frame.bytes;
  }
  for (uint32_t i = 0; i < segments_.size(); i++) {
    const Segment& segment = segments_[i];
    size_t frame = std::upper_bound(begins_.begin(), begins_.end(), segment.begin) - begins_.begin() - 1;
    for (; frame < frames_.size() && begins_[frame] < segment.begin + segment.bytes; frame++) {
      wanted_[frame].push_back(i);
    }
  }
  for (size_t i = 0; i < frames_.size(); i++) {
    if (wanted_[i].empty()) continue;
    wanted_frames_++;
    stored_max_ = std::max<size_t>(stored_max_, frames_[i].stored);
    bytes_max_ = std::max<size_t>(bytes_max_, frames_[i].bytes);
  }
  const uint64_t behind = split < frames_.size() ? begins_[split] : begin;
  std::set<int> files_before;
  for (const Segment& segment : segments_) {
    if (segment.begin < behind) files_before.insert(segment.fd);
  }
  for (const Segment& segment : segments_) {
    in_turn_.push_back(segment.begin < behind || !files_before.contains(segment.fd));
  }
}

FrameError FrameReader::Run(unsigned threads) {
  InThreads(std::clamp(wanted_frames_, 1u, threads), [this](unsigned) { Work(); });
  if (SysError error = writeback_.Stop(); error && !error_) error_ = {error};
  return error_;
}

std::vector<Digest> FrameReader::Digests() {
  std::vector<Digest> digests;
  for (const DigestStream& hash : hashes_) digests.push_back(hash.Finish());
  return digests;
}

bool FrameReader::Next(size_t* frame) {
  const size_t taken = next_.fetch_add(1), behind = frames_.size() - split_;
  *frame = taken < behind ? split_ + taken : taken - behind;
  return taken < frames_.size();
}

void FrameReader::Work() {
  Buffers buffers(stored_max_, bytes_max_);
  FrameError error;
  if (!buffers.zstd) error = {{"ZSTD_createDCtx", ENOMEM}};
  for (size_t frame; !error && !failed_ && Next(&frame);) {
    error = progress_.stopped() ? FrameError{{"frames", ECANCELED}} : Take(frame, &buffers);
  }
  if (!error) return;
  std::lock_guard lock(mutex_);
  failed_ = true;
  if (!error_) error_ = error;
  moved_.notify_all();
}

FrameError FrameReader::Take(size_t frame, Buffers* buffers) {
  const auto [stored, bytes] = frames_[frame];
  if (wanted_[frame].empty()) {
    Hash(frame, {});
  } else {
    size_t done;
    uint8_t* from = buffers->stored.get();
    if (SysError error = ReadAt(pack_, from, stored, ats_[frame], &done)) return {error};
    if (done < stored) return {{}, "truncated"};
    // One frame and nothing else: several, or some that are to be skipped, could say less than they hold.
    if (ZSTD_findFrameCompressedSize(from, stored) != stored) return {{}, "a frame is damaged"};
    if (ZSTD_decompressDCtx(buffers->zstd, buffers->content.get(), bytes, from, stored) != bytes) {
      return {{}, "a frame is damaged"};
    }
    // First what needs no turn.
    if (FrameError error = Place(frame, buffers->content.get())) return error;
    Hash(frame, {buffers->content.get(), bytes});
  }
  progress_.Add(bytes);
  return {};
}

void FrameReader::Hash(size_t frame, std::span<const uint8_t> content) {
  if (hashed_.empty() || frame < split_) return;
  {
    std::unique_lock lock(mutex_);
    moved_.wait(lock, [&] { return failed_ || turn_ == frame; });
    if (failed_) return;
  }
  // Nobody else does before the turn goes on.
  for (size_t i = 0; i < hashed_.size(); i++) {
    uint64_t begin = std::max(hashed_[i].begin, begins_[frame]);
    uint64_t end = std::min(hashed_[i].begin + hashed_[i].bytes, begins_[frame] + content.size());
    if (begin < end) hashes_[i].Add(content.data() + (begin - begins_[frame]), end - begin);
  }
  std::lock_guard lock(mutex_);
  turn_++;
  moved_.notify_all();
}

FrameError FrameReader::Place(size_t frame, const uint8_t* content) {
  uint64_t frame_begin = begins_[frame], frame_end = frame_begin + frames_[frame].bytes;
  for (uint32_t i : wanted_[frame]) {
    const Segment& segment = segments_[i];
    uint64_t begin = std::max(segment.begin, frame_begin);
    uint64_t end = std::min(segment.begin + segment.bytes, frame_end);
    const uint8_t* from = content + (begin - frame_begin);
    uint64_t offset = segment.offset + (begin - segment.begin);
    if (segment.fd == Segment::kAside) {
      memcpy(aside_.data() + offset, from, end - begin);
      continue;
    }
    if (segment.fd == Segment::kZeros) {
      if (!IsZero(from, end - begin)) return {{}, "what belongs elsewhere is not zero"};
      continue;
    }
    if (SysError error = WriteSparse(segment.fd, from, end - begin, offset)) return {error};
    if (in_turn_[i]) {
      writeback_.Wrote(segment.fd, offset, end - begin);
    } else {
      writeback_.WroteAhead(segment.fd, offset, end - begin);
    }
    if (check_ && segment.fd == check_->fd()) check_->Note(from, end - begin, offset);
  }
  return {};
}

}  // namespace forkd
