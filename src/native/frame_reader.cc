#include "frame_reader.h"

#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "io.h"

namespace forkd {

namespace {

// Shorter runs of zeros are written: a hole costs the file system an extent.
constexpr uint64_t kHoleBytes = 16 * 1024;

// The memory may have data before and after; nothing is written where whole blocks of it are zero.
SysError WriteSparse(int fd, const uint8_t* from, size_t bytes, uint64_t offset) {
  size_t begin = 0;
  for (size_t at = 0; at < bytes;) {
    size_t block = std::min<uint64_t>(kHoleBytes - (offset + at) % kHoleBytes, bytes - at);
    if (IsZero(from + at, block)) {
      if (SysError error = WriteAt(fd, from + begin, at - begin, offset + begin)) return error;
      begin = at + block;
    }
    at += block;
  }
  return WriteAt(fd, from + begin, bytes - begin, offset + begin);
}

}  // namespace

struct FrameReader::Buffers {
  Buffers(size_t stored_bytes, size_t content_bytes)
      : stored(new uint8_t[stored_bytes]), content(new uint8_t[content_bytes]), zstd(ZSTD_createDCtx()) {}
  ~Buffers() { ZSTD_freeDCtx(zstd); }
  Buffers(const Buffers&) = delete;

  std::unique_ptr<uint8_t[]> stored, content;
  ZSTD_DCtx* zstd;
  Writeback writeback;
};

FrameReader::FrameReader(int pack, std::vector<Frame> frames, std::vector<Segment> segments,
                         std::span<uint8_t> aside, size_t split, FrameProgress progress)
    : pack_(pack),
      frames_(std::move(frames)),
      segments_(std::move(segments)),
      aside_(aside),
      progress_(progress),
      wanted_(frames_.size()),
      halves_{{0, split}, {split, frames_.size()}} {
  uint64_t at = 0, begin = 0;
  for (const Frame& frame : frames_) {
    ats_.push_back(at);
    begins_.push_back(begin);
    at += frame.stored;
    begin += frame.bytes;
    stored_max_ = std::max<size_t>(stored_max_, frame.stored);
    bytes_max_ = std::max<size_t>(bytes_max_, frame.bytes);
  }
  for (uint32_t i = 0; i < segments_.size(); i++) {
    const Segment& segment = segments_[i];
    size_t frame = std::upper_bound(begins_.begin(), begins_.end(), segment.begin) - begins_.begin() - 1;
    for (; frame < frames_.size() && begins_[frame] < segment.begin + segment.bytes; frame++) {
      wanted_[frame].push_back(i);
    }
  }
}

FrameError FrameReader::Run(unsigned threads) {
  InThreads(threads, [this](unsigned thread) { Work(thread); });
  return error_;
}

bool FrameReader::Next(unsigned thread, size_t* frame) {
  for (unsigned i = 0; i < 2; i++) {
    Half& half = halves_[(thread + i) % 2];
    *frame = half.next.fetch_add(1);
    if (*frame < half.end) return true;
  }
  return false;
}

void FrameReader::Work(unsigned thread) {
  Buffers buffers(stored_max_, bytes_max_);
  FrameError error;
  if (!buffers.zstd) error = {{"ZSTD_createDCtx", ENOMEM}};
  for (size_t frame; !error && !failed_ && Next(thread, &frame);) {
    error = progress_.stopped() ? FrameError{{"frames", ECANCELED}} : Take(frame, &buffers);
  }
  if (!error) return;
  failed_ = true;
  std::lock_guard lock(mutex_);
  if (!error_) error_ = error;
}

FrameError FrameReader::Take(size_t frame, Buffers* buffers) {
  const auto [stored, bytes] = frames_[frame];
  if (!wanted_[frame].empty()) {
    size_t done;
    uint8_t* from = buffers->stored.get();
    if (SysError error = ReadAt(pack_, from, stored, ats_[frame], &done)) return {error};
    if (done < stored) return {{}, "truncated"};
    // One frame and nothing else: several, or some that are to be skipped, could say less than they hold.
    if (ZSTD_findFrameCompressedSize(from, stored) != stored) return {{}, "a frame is damaged"};
    if (ZSTD_decompressDCtx(buffers->zstd, buffers->content.get(), bytes, from, stored) != bytes) {
      return {{}, "a frame is damaged"};
    }
    if (FrameError error = Place(frame, buffers->content.get(), &buffers->writeback)) return error;
  }
  progress_.Add(bytes);
  return {};
}

FrameError FrameReader::Place(size_t frame, const uint8_t* content, Writeback* writeback) {
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
    writeback->Wrote(segment.fd, offset, end - begin);
  }
  return {};
}

}  // namespace forkd
