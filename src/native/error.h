#pragma once

#include <napi.h>

#include <cerrno>

namespace forkd {

// A failed system call, as a value: code that runs without a JavaScript environment returns it.
struct SysError {
  const char* syscall = nullptr;
  int number = 0;

  explicit operator bool() const { return number != 0; }
  // To be taken right after the call, before anything can change errno.
  static SysError Last(const char* syscall) { return {syscall, errno}; }
};

// Each returns undefined, so that a binding can say `return Throw...(env, ...)`.

// As Node's own: `ENOENT: No such file or directory, execve '/x'` with {code, syscall, errno (negative),
// path}.
Napi::Value ThrowSysError(Napi::Env env, SysError error, const char* path = nullptr);
// The errno of the call that just failed.
Napi::Value ThrowErrno(Napi::Env env, const char* syscall, const char* path = nullptr);
// A mistake of the caller: TypeError, code ERR_INVALID_ARG_VALUE.
Napi::Value ThrowInvalid(Napi::Env env, const char* message);

}  // namespace forkd
