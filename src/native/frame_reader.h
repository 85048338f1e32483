#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "digest.h"
#include "frame_check.h"
#include "frames.h"

namespace forkd {

// Decompresses frames of a file, and puts what is in them where it belongs: any part of the content may be
// wanted in a file, in more than one, or not at all. Zeros become holes: the files are new.
class FrameReader {
 public:
  struct Frame {
    uint64_t stored;  // bytes in the file, and unpacked
    uint64_t bytes;
  };
  struct Segment {
    static constexpr int kAside = -1;  // into the memory that was given
    static constexpr int kZeros = -2;  // nowhere, and zero
    uint64_t begin;                    // in the content
    uint64_t bytes;
    int fd;
    uint64_t offset;
  };

  struct Part {
    uint64_t begin;  // in the content
    uint64_t bytes;
  };

  // `split`: frames from it on come first, those before it after them. `hashed`: gets BLAKE3 of these parts,
  // which lie behind `split`, while they are in memory. `check` (may be null) hears of what goes into its
  // file. `folder`: as Writeback's.
  FrameReader(int pack, std::vector<Frame> frames, std::vector<Segment> segments, std::span<uint8_t> aside,
              size_t split, std::vector<Part> hashed, std::unique_ptr<FrameCheck> check, int folder,
              FrameProgress progress);

  FrameError Run(unsigned threads);
  // Once, after it.
  std::vector<Digest> Digests();

 private:
  struct Buffers;

  void Work();
  bool Next(size_t* frame);
  FrameError Take(size_t frame, Buffers* buffers);
  // Waits for its turn: a hash takes bytes in their order.
  void Hash(size_t frame, std::span<const uint8_t> content);
  FrameError Place(size_t frame, const uint8_t* content);

  const int pack_;
  const std::vector<Frame> frames_;
  const std::vector<Segment> segments_;
  const std::span<uint8_t> aside_;
  const std::vector<Part> hashed_;
  const std::unique_ptr<FrameCheck> check_;
  const FrameProgress progress_;
  std::vector<uint64_t> ats_, begins_;
  std::vector<std::vector<uint32_t>> wanted_;  // segments of each frame
  // Of each segment: its file is written from front to back about now, and not here and there.
  std::vector<bool> in_turn_;
  unsigned wanted_frames_ = 0;
  size_t stored_max_ = 0, bytes_max_ = 0;  // of those

  const size_t split_;
  std::atomic<size_t> next_{0};  // counted from `split_`
  Writeback writeback_;
  std::vector<DigestStream> hashes_;
  size_t turn_;  // the frame that is to be hashed
  std::mutex mutex_;
  std::condition_variable moved_;
  FrameError error_;
  std::atomic<bool> failed_{false};
};

}  // namespace forkd
