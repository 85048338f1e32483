#include "error.h"

#include <cstring>
#include <string>

namespace forkd {

Napi::Value ThrowSysError(Napi::Env env, SysError error, const char* path) {
  const char* name = strerrorname_np(error.number);
  const char* description = strerrordesc_np(error.number);
  std::string code = name ? name : "UNKNOWN";
  std::string message = code + ": " + (description ? description : "unknown error") + ", " + error.syscall;
  if (path) message += std::string(" '") + path + "'";

  Napi::Error thrown = Napi::Error::New(env, message);
  thrown.Set("code", code);
  thrown.Set("syscall", error.syscall);
  thrown.Set("errno", Napi::Number::New(env, -error.number));
  if (path) thrown.Set("path", path);
  thrown.ThrowAsJavaScriptException();
  return env.Undefined();
}

Napi::Value ThrowErrno(Napi::Env env, const char* syscall, const char* path) {
  return ThrowSysError(env, SysError::Last(syscall), path);
}

Napi::Value ThrowInvalid(Napi::Env env, const char* message) {
  Napi::TypeError thrown = Napi::TypeError::New(env, message);
  thrown.Set("code", "ERR_INVALID_ARG_VALUE");
  thrown.ThrowAsJavaScriptException();
  return env.Undefined();
}

}  // namespace forkd
