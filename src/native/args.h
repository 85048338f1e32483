#pragma once

#include <napi.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace forkd {

// Reads one value that came from JavaScript. The first that does not fit throws a TypeError naming it and
// clears Ok(); the reads after it return harmless defaults, so a binding reads all its arguments and asks
// Ok() once. It guards memory safety only: defaults and policy belong to the TypeScript callers.
class Args {
 public:
  explicit Args(const Napi::CallbackInfo& info) : info_(info), env_(info.Env()) {}

  bool Ok() const { return ok_; }

  int Fd(size_t i, const char* name) { return ToFd(info_[i], name); }
  int Int(size_t i, const char* name, int min, int max) { return ToInt(info_[i], name, min, max); }
  // A size or an offset in bytes, or a count: a whole number from 0 to 2^53 - 1.
  uint64_t Count(size_t i, const char* name);
  bool Bool(size_t i, const char* name);
  bool BoolOr(size_t i, const char* name, bool fallback);
  std::string Text(size_t i, const char* name) { return ToText(info_[i], name); }
  // Valid while the binding runs: the caller's arguments keep the memory alive.
  std::span<uint8_t> Bytes(size_t i, const char* name);
  std::span<int32_t> Int32s(size_t i, const char* name);
  std::span<uint32_t> Uint32s(size_t i, const char* name);
  std::span<int64_t> Int64s(size_t i, const char* name);
  std::vector<int> Fds(size_t i, const char* name) { return ToFds(info_[i], name); }
  std::vector<std::string> Texts(size_t i, const char* name) { return ToTexts(info_[i], name); }
  Napi::Function Function(size_t i, const char* name);
  Napi::Object Object(size_t i, const char* name);

  int ToFd(Napi::Value value, const char* name) { return ToInt(value, name, 0, INT32_MAX); }
  int ToInt(Napi::Value value, const char* name, int min, int max);
  bool ToBool(Napi::Value value, const char* name);
  // Refuses an embedded NUL, at which the system call would cut the text short.
  std::string ToText(Napi::Value value, const char* name);
  std::vector<int> ToFds(Napi::Value value, const char* name);
  std::vector<std::string> ToTexts(Napi::Value value, const char* name);
  Napi::Array ToArray(Napi::Value value, const char* name);

  void Refuse(const char* name, const char* expected);

 private:
  const Napi::CallbackInfo& info_;
  Napi::Env env_;
  bool ok_ = true;
};

}  // namespace forkd
