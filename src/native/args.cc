#include "args.h"

#include <cmath>

#include "error.h"

namespace forkd {

void Args::Refuse(const char* name, const char* expected) {
  if (!ok_) return;
  ok_ = false;
  // A getter of the caller's has thrown already: its own exception goes on.
  if (env_.IsExceptionPending()) return;
  ThrowInvalid(env_, (std::string(name) + ": expected " + expected).c_str());
}

int Args::ToInt(Napi::Value value, const char* name, int min, int max) {
  if (value.IsNumber()) {
    double number = value.As<Napi::Number>().DoubleValue();
    if (number >= min && number <= max && number == std::trunc(number)) return static_cast<int>(number);
  }
  Refuse(name, ("an integer from " + std::to_string(min) + " to " + std::to_string(max)).c_str());
  return min;
}

uint64_t Args::Count(size_t i, const char* name) {
  constexpr double kMaxSafeInteger = 9007199254740991;
  Napi::Value value = info_[i];
  if (value.IsNumber()) {
    double number = value.As<Napi::Number>().DoubleValue();
    if (number >= 0 && number <= kMaxSafeInteger && number == std::trunc(number)) {
      return static_cast<uint64_t>(number);
    }
  }
  Refuse(name, "a safe integer of at least 0");
  return 0;
}

bool Args::ToBool(Napi::Value value, const char* name) {
  if (value.IsBoolean()) return value.As<Napi::Boolean>().Value();
  Refuse(name, "a boolean");
  return false;
}

bool Args::Bool(size_t i, const char* name) {
  return ToBool(info_[i], name);
}

bool Args::BoolOr(size_t i, const char* name, bool fallback) {
  return info_[i].IsUndefined() ? fallback : Bool(i, name);
}

std::string Args::ToText(Napi::Value value, const char* name) {
  if (value.IsString()) {
    std::string text = value.As<Napi::String>().Utf8Value();
    if (text.find('\0') == std::string::npos) return text;
  }
  Refuse(name, "a string without NUL");
  return {};
}

std::span<uint8_t> Args::Bytes(size_t i, const char* name) {
  Napi::Value value = info_[i];
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint8_array) {
    Napi::Uint8Array array = value.As<Napi::Uint8Array>();
    return {array.Data(), array.ElementLength()};
  }
  Refuse(name, "a Uint8Array");
  return {};
}

std::span<int32_t> Args::Int32s(size_t i, const char* name) {
  Napi::Value value = info_[i];
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_int32_array) {
    Napi::Int32Array array = value.As<Napi::Int32Array>();
    return {array.Data(), array.ElementLength()};
  }
  Refuse(name, "an Int32Array");
  return {};
}

std::span<uint32_t> Args::Uint32s(size_t i, const char* name) {
  Napi::Value value = info_[i];
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_uint32_array) {
    Napi::Uint32Array array = value.As<Napi::Uint32Array>();
    return {array.Data(), array.ElementLength()};
  }
  Refuse(name, "a Uint32Array");
  return {};
}

std::span<int64_t> Args::Int64s(size_t i, const char* name) {
  Napi::Value value = info_[i];
  if (value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == napi_bigint64_array) {
    Napi::BigInt64Array array = value.As<Napi::BigInt64Array>();
    return {array.Data(), array.ElementLength()};
  }
  Refuse(name, "a BigInt64Array");
  return {};
}

Napi::Array Args::ToArray(Napi::Value value, const char* name) {
  if (value.IsArray()) return value.As<Napi::Array>();
  Refuse(name, "an array");
  return Napi::Array::New(env_);
}

std::vector<int> Args::ToFds(Napi::Value value, const char* name) {
  Napi::Array array = ToArray(value, name);
  std::vector<int> fds;
  for (uint32_t i = 0; ok_ && i < array.Length(); i++) fds.push_back(ToFd(array.Get(i), name));
  return fds;
}

std::vector<std::string> Args::ToTexts(Napi::Value value, const char* name) {
  Napi::Array array = ToArray(value, name);
  std::vector<std::string> texts;
  for (uint32_t i = 0; ok_ && i < array.Length(); i++) texts.push_back(ToText(array.Get(i), name));
  return texts;
}

Napi::Function Args::Function(size_t i, const char* name) {
  if (info_[i].IsFunction()) return info_[i].As<Napi::Function>();
  Refuse(name, "a function");
  return {};
}

Napi::Object Args::Object(size_t i, const char* name) {
  if (info_[i].IsObject()) return info_[i].As<Napi::Object>();
  Refuse(name, "an object");
  return Napi::Object::New(env_);
}

}  // namespace forkd
