// What JavaScript sees of frames.
#include <algorithm>

#include "addon.h"
#include "args.h"
#include "frame_reader.h"
#include "frame_writer.h"
#include "thread_call.h"

namespace forkd {

namespace {

FrameProgress ProgressOf(Args& args, size_t i) {
  std::span<int64_t> slots = args.Int64s(i, "progress");
  if (slots.size() != FrameProgress::kSlots) args.Refuse("progress", "two numbers");
  return FrameProgress(slots);
}

bool IsDescriptor(int64_t number) {
  return number >= 0 && number <= INT32_MAX;
}

// [begin, begin + bytes) lies in [0, end).
bool Fits(int64_t begin, int64_t bytes, uint64_t end) {
  return begin >= 0 && bytes > 0 && static_cast<uint64_t>(begin) <= end &&
         static_cast<uint64_t>(bytes) <= end - static_cast<uint64_t>(begin);
}

constexpr uint64_t kFileBytesMax = uint64_t{1} << 53;

Napi::Value ThrowFrameError(Napi::Env env, const FrameError& error) {
  if (error.sys) return ThrowSysError(env, error.sys);
  Napi::Error::New(env, error.what).ThrowAsJavaScriptException();
  return {};
}

std::vector<FrameWriter::Piece> PiecesOf(Args& args, size_t i, size_t given_bytes, uint64_t* total) {
  std::span<int64_t> numbers = args.Int64s(i, "pieces");
  std::vector<FrameWriter::Piece> pieces;
  *total = 0;
  for (size_t at = 0; args.Ok() && at + 3 <= numbers.size(); at += 3) {
    auto [fd, from, bytes] = std::tuple(numbers[at], numbers[at + 1], numbers[at + 2]);
    bool is_given = fd == FrameWriter::Piece::kGiven;
    if (!is_given && fd != FrameWriter::Piece::kZeros && !IsDescriptor(fd))
      args.Refuse("pieces", "descriptors");
    if (!Fits(from, bytes, is_given ? given_bytes : kFileBytesMax)) args.Refuse("pieces", "parts of files");
    if (!args.Ok()) break;
    pieces.push_back({static_cast<int>(fd), static_cast<uint64_t>(from), static_cast<uint64_t>(bytes)});
    *total += static_cast<uint64_t>(bytes);
  }
  return pieces;
}

std::vector<uint32_t> FramesToWrite(Args& args, size_t i, uint64_t total) {
  std::span<uint32_t> numbers = args.Uint32s(i, "frames");
  std::vector<uint32_t> frames;
  for (uint32_t bytes : numbers) {
    if (bytes == 0 || bytes > kFrameBytesMax || bytes > total) args.Refuse("frames", "sizes of frames");
    if (!args.Ok()) break;
    frames.push_back(bytes);
    total -= bytes;
  }
  if (args.Ok() && total != 0) args.Refuse("frames", "all bytes of the pieces");
  return frames;
}

Napi::Value FramesWrite(const Napi::CallbackInfo& info) {
  Args args(info);
  int target = args.Fd(0, "target");
  std::span<uint8_t> given = args.Bytes(3, "given");
  uint64_t total = 0;
  std::vector<FrameWriter::Piece> pieces;
  if (args.Ok()) pieces = PiecesOf(args, 1, given.size(), &total);
  std::vector<uint32_t> frames;
  if (args.Ok()) frames = FramesToWrite(args, 2, total);
  int threads = args.Int(4, "threads", 1, kFrameThreadsMax);
  FrameProgress progress = ProgressOf(args, 5);
  if (!args.Ok()) return {};

  auto writer = std::make_shared<FrameWriter>(target, std::move(pieces), std::move(frames), given, progress);
  auto error = std::make_shared<FrameError>();
  ThreadCall call;
  call.work = [=] { *error = writer->Run(static_cast<unsigned>(threads)); };
  call.finish = [=](Napi::Env env) -> Napi::Value {
    if (*error) return ThrowFrameError(env, *error);
    std::span<const uint32_t> stored = writer->stored();
    Napi::Uint32Array result = Napi::Uint32Array::New(env, stored.size());
    if (!result.IsEmpty()) std::copy(stored.begin(), stored.end(), result.Data());
    return result;
  };
  call.stop = [=] { progress.Stop(); };
  return ThreadCall::Start(info.Env(), {info[3], info[5]}, std::move(call));
}

std::vector<FrameReader::Frame> FramesToRead(Args& args, size_t i, uint64_t* total) {
  std::span<uint32_t> numbers = args.Uint32s(i, "frames");
  std::vector<FrameReader::Frame> frames;
  *total = 0;
  for (size_t at = 0; args.Ok() && at + 2 <= numbers.size(); at += 2) {
    if (std::max(numbers[at], numbers[at + 1]) > kFrameBytesMax) args.Refuse("frames", "sizes of frames");
    frames.push_back({numbers[at], numbers[at + 1]});
    *total += numbers[at + 1];
  }
  return frames;
}

std::vector<FrameReader::Segment> SegmentsOf(Args& args, size_t i, uint64_t total, size_t aside_bytes) {
  std::span<int64_t> numbers = args.Int64s(i, "segments");
  std::vector<FrameReader::Segment> segments;
  for (size_t at = 0; args.Ok() && at + 4 <= numbers.size(); at += 4) {
    int64_t begin = numbers[at], bytes = numbers[at + 1], fd = numbers[at + 2], offset = numbers[at + 3];
    bool is_aside = fd == FrameReader::Segment::kAside;
    if (!is_aside && fd != FrameReader::Segment::kZeros && !IsDescriptor(fd))
      args.Refuse("segments", "descriptors");
    if (!Fits(begin, bytes, total)) args.Refuse("segments", "parts of the content");
    if (!Fits(offset, bytes, is_aside ? aside_bytes : kFileBytesMax))
      args.Refuse("segments", "parts of files");
    if (!args.Ok()) break;
    segments.push_back({static_cast<uint64_t>(begin), static_cast<uint64_t>(bytes), static_cast<int>(fd),
                        static_cast<uint64_t>(offset)});
  }
  return segments;
}

std::vector<FrameReader::Part> HashedOf(Args& args, size_t i, uint64_t total) {
  std::span<int64_t> numbers = args.Int64s(i, "hashed");
  std::vector<FrameReader::Part> parts;
  for (size_t at = 0; args.Ok() && at + 2 <= numbers.size(); at += 2) {
    if (!Fits(numbers[at], numbers[at + 1], total)) args.Refuse("hashed", "parts of the content");
    parts.push_back({static_cast<uint64_t>(numbers[at]), static_cast<uint64_t>(numbers[at + 1])});
  }
  return parts;
}

// Handle of a source, descriptor, bytes for its chunks; nothing is checked without a handle.
std::unique_ptr<FrameCheck> CheckOf(Args& args, size_t i) {
  int handle = args.Int(i, "source", -1, INT32_MAX);
  if (!args.Ok() || handle < 0) return nullptr;
  std::shared_ptr<ChunkSource> source = FindSource(handle);
  if (!source || source->layers() != 1) args.Refuse("source", "the handle of an open source of one layer");
  int fd = args.Fd(i + 1, "layer");
  std::span<uint8_t> known = args.Bytes(i + 2, "known");
  if (args.Ok() && known.size() != source->chunks()) args.Refuse("known", "a byte for each chunk");
  if (!args.Ok()) return nullptr;
  return std::make_unique<FrameCheck>(std::move(source), fd, known);
}

Napi::Value FramesRead(const Napi::CallbackInfo& info) {
  Args args(info);
  int pack = args.Fd(0, "pack");
  uint64_t total = 0;
  std::vector<FrameReader::Frame> frames = FramesToRead(args, 1, &total);
  std::span<uint8_t> aside = args.Bytes(3, "aside");
  std::vector<FrameReader::Segment> segments;
  if (args.Ok()) segments = SegmentsOf(args, 2, total, aside.size());
  uint64_t split = args.Count(4, "split");
  if (split > frames.size()) args.Refuse("split", "the number of a frame");
  std::vector<FrameReader::Part> hashed;
  if (args.Ok()) hashed = HashedOf(args, 5, total);
  int threads = args.Int(6, "threads", 1, kFrameThreadsMax);
  FrameProgress progress = ProgressOf(args, 7);
  std::unique_ptr<FrameCheck> check = CheckOf(args, 8);
  int folder = args.Int(11, "folder", -1, INT32_MAX);
  if (!args.Ok()) return {};

  auto reader = std::make_shared<FrameReader>(pack, std::move(frames), std::move(segments), aside, split,
                                              std::move(hashed), std::move(check), folder, progress);
  auto error = std::make_shared<FrameError>();
  ThreadCall call;
  call.work = [=] { *error = reader->Run(static_cast<unsigned>(threads)); };
  call.finish = [=](Napi::Env env) -> Napi::Value {
    if (*error) return ThrowFrameError(env, *error);
    Napi::Array result = Napi::Array::New(env);
    for (const Digest& digest : reader->Digests()) result.Set(result.Length(), ToHex(digest));
    return result;
  };
  call.stop = [=] { progress.Stop(); };
  return ThreadCall::Start(info.Env(), {info[3], info[7], info[10]}, std::move(call));
}

}  // namespace

void RegisterFrames(Napi::Env env, Napi::Object exports) {
  Export<FramesWrite>(env, exports, "framesWrite");
  Export<FramesRead>(env, exports, "framesRead");
}

}  // namespace forkd
