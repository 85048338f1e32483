#include "frame_writer.h"

#include <poll.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cstring>

#include "io.h"

namespace forkd {

namespace {

// Beyond those that are being compressed: one thread may be late.
constexpr unsigned kSlotsAhead = 4;

// Literals stay as they are, as at all negative levels: Huffman's code makes packs 11 % smaller, and takes a
// third of zstd's time to unpack. The table fits the first cache. Matches of 6 bytes make packs 4 % larger
// for 10 % less time.
constexpr int kLevel = -1;
constexpr int kMinMatch = 5;
constexpr int kHashLog = 13;

// Settles when a socket that does not block takes more, or never will.
SysError AwaitRoom(int fd) {
  pollfd wanted = {fd, POLLOUT, 0};
  if (poll(&wanted, 1, -1) < 0 && errno != EINTR) return SysError::Last("poll");
  return {};
}

// write(2) in order, for what has no positions.
SysError WriteOn(int fd, const uint8_t* from, size_t bytes) {
  for (size_t done = 0; done < bytes;) {
    ssize_t n = write(fd, from + done, bytes - done);
    if (n >= 0) {
      done += static_cast<size_t>(n);
    } else if (errno == EAGAIN) {
      if (SysError error = AwaitRoom(fd)) return error;
    } else if (errno != EINTR) {
      return SysError::Last("write");
    }
  }
  return {};
}

}  // namespace

FrameWriter::FrameWriter(int target, std::vector<Piece> pieces, std::vector<uint32_t> frames,
                         std::span<const uint8_t> given, FrameProgress progress)
    : target_(target),
      pieces_(std::move(pieces)),
      frames_(std::move(frames)),
      given_(given),
      progress_(progress) {
  uint64_t at = 0;
  for (const Piece& piece : pieces_) {
    piece_begins_.push_back(at);
    at += piece.bytes;
  }
  at = 0;
  for (uint32_t bytes : frames_) {
    frame_begins_.push_back(at);
    at += bytes;
    content_max_ = std::max<size_t>(content_max_, bytes);
  }
  stored_max_ = ZSTD_compressBound(content_max_);
  uint64_t size;
  positioned_ = !RegularSize(target, &size);
}

FrameError FrameWriter::Run(unsigned threads) {
  slots_.resize(std::min<size_t>(threads + kSlotsAhead, std::max<size_t>(frames_.size(), 1)));
  stored_.resize(frames_.size());
  InThreads(threads, [this](unsigned) { Work(); });
  if (SysError error = writeback_.Stop(); error && !error_) error_ = {error};
  return error_;
}

void FrameWriter::Work() {
  std::unique_ptr<uint8_t[]> content(new uint8_t[content_max_]);
  ZSTD_CCtx* zstd = ZSTD_createCCtx();
  for (size_t frame; (frame = next_.fetch_add(1)) < frames_.size() && Await(frame);) {
    FrameError error = {{"ZSTD_createCCtx", ENOMEM}};
    if (zstd) error = Make(frame, content.get(), zstd, &slots_[frame % slots_.size()]);
    if (error) {
      Fail(error);
      break;
    }
    HandOver(frame);
  }
  ZSTD_freeCCtx(zstd);
}

FrameError FrameWriter::Make(size_t frame, uint8_t* content, ZSTD_CCtx* zstd, Slot* slot) {
  size_t bytes = frames_[frame];
  bool has_given = false;
  if (FrameError error = Read(frame, content, &has_given)) return error;
  ZSTD_CCtx_setParameter(zstd, ZSTD_c_compressionLevel, kLevel);
  ZSTD_CCtx_setParameter(zstd, ZSTD_c_minMatch, kMinMatch);
  ZSTD_CCtx_setParameter(zstd, ZSTD_c_hashLog, kHashLog);
  // Files are known by hashes that are worth more.
  ZSTD_CCtx_setParameter(zstd, ZSTD_c_checksumFlag, has_given);
  if (!slot->data) slot->data.reset(new uint8_t[stored_max_]);
  slot->bytes = ZSTD_compress2(zstd, slot->data.get(), stored_max_, content, bytes);
  if (ZSTD_isError(slot->bytes)) return {{}, "a frame could not be compressed"};
  progress_.Add(bytes);
  return {};
}

FrameError FrameWriter::Read(size_t frame, uint8_t* into, bool* has_given) const {
  uint64_t begin = frame_begins_[frame], end = begin + frames_[frame];
  size_t i = std::upper_bound(piece_begins_.begin(), piece_begins_.end(), begin) - piece_begins_.begin() - 1;
  for (; begin < end; i++) {
    const Piece& piece = pieces_[i];
    uint64_t skipped = begin - piece_begins_[i];
    size_t bytes = std::min(piece.bytes - skipped, end - begin);
    if (piece.fd == Piece::kZeros) {
      memset(into, 0, bytes);
    } else if (piece.fd == Piece::kGiven) {
      *has_given = true;
      memcpy(into, given_.data() + piece.from + skipped, bytes);
    } else {
      size_t done;
      if (SysError error = ReadAt(piece.fd, into, bytes, piece.from + skipped, &done)) return {error};
      if (done < bytes) return {{}, "a file ended early"};
    }
    into += bytes;
    begin += bytes;
  }
  return {};
}

bool FrameWriter::Await(size_t frame) {
  if (progress_.stopped()) Fail({{"frames", ECANCELED}});
  std::unique_lock lock(mutex_);
  moved_.wait(lock, [&] { return error_ || frame < written_ + slots_.size(); });
  return !error_;
}

void FrameWriter::HandOver(size_t frame) {
  std::unique_lock lock(mutex_);
  slots_[frame % slots_.size()].ready = true;
  // Whoever writes looks for more before it is done.
  if (writing_) return;
  writing_ = true;
  for (Slot* slot; !error_ && (slot = &slots_[written_ % slots_.size()])->ready;) {
    lock.unlock();
    FrameError error = Write(*slot);
    lock.lock();
    if (error && !error_) error_ = error;
    stored_[written_] = static_cast<uint32_t>(slot->bytes);
    slot->ready = false;
    written_++;
    moved_.notify_all();
  }
  writing_ = false;
}

FrameError FrameWriter::Write(const Slot& slot) {
  if (!positioned_) return {WriteOn(target_, slot.data.get(), slot.bytes)};
  if (SysError error = WriteAt(target_, slot.data.get(), slot.bytes, at_)) return {error};
  writeback_.Wrote(target_, at_, slot.bytes);
  at_ += slot.bytes;
  return {};
}

void FrameWriter::Fail(FrameError error) {
  std::lock_guard lock(mutex_);
  if (!error_) error_ = error;
  moved_.notify_all();
}

}  // namespace forkd
