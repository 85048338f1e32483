#pragma once

#include <condition_variable>
#include <mutex>
#include <vector>

#include "frames.h"

struct ZSTD_CCtx_s;

namespace forkd {

// Compresses pieces of files into frames: each thread reads and compresses the next frame, and whoever has
// the one whose turn it is writes what is ready. A few frames are in memory at a time, whatever the size.
class FrameWriter {
 public:
  struct Piece {
    static constexpr int kGiven = -1;  // of the bytes that were given, from `from` on
    static constexpr int kZeros = -2;
    int fd;
    uint64_t from;
    uint64_t bytes;
  };
  // `frames`, in bytes, have exactly the bytes of the pieces. `target` is a file, written from its beginning,
  // or anything that can only be written in order.
  FrameWriter(int target, std::vector<Piece> pieces, std::vector<uint32_t> frames,
              std::span<const uint8_t> given, FrameProgress progress);

  FrameError Run(unsigned threads);
  // Bytes of each frame in the target.
  std::span<const uint32_t> stored() const { return stored_; }

 private:
  struct Slot {
    std::unique_ptr<uint8_t[]> data;
    size_t bytes = 0;
    bool ready = false;
  };

  void Work();
  FrameError Make(size_t frame, uint8_t* content, ZSTD_CCtx_s* zstd, Slot* slot);
  // `has_given`: whether it has bytes that were given.
  FrameError Read(size_t frame, uint8_t* into, bool* has_given) const;
  // Waits until the slot of a frame is free; false when nothing more is to be done.
  bool Await(size_t frame);
  void HandOver(size_t frame);
  FrameError Write(const Slot& slot);
  void Fail(FrameError error);

  const int target_;
  const std::vector<Piece> pieces_;
  const std::vector<uint32_t> frames_;
  const std::span<const uint8_t> given_;
  const FrameProgress progress_;
  std::vector<uint64_t> piece_begins_, frame_begins_;
  size_t content_max_ = 0, stored_max_ = 0;
  bool positioned_ = false;
  Writeback writeback_;

  std::atomic<size_t> next_{0};
  std::vector<Slot> slots_;
  std::vector<uint32_t> stored_;
  std::mutex mutex_;
  std::condition_variable moved_;
  size_t written_ = 0;  // frames
  uint64_t at_ = 0;     // in the target
  bool writing_ = false;
  FrameError error_;
};

}  // namespace forkd
