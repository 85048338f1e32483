// TCP sockets that live in another network namespace.
//
// A socket belongs to the namespace of the thread that makes it, for life. setns(2) moves one thread, so a
// thread of its own enters, makes the socket and ends: the calling thread never leaves its namespace.
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <thread>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "fd.h"

namespace forkd {

namespace {

Napi::Value TcpSocketIn(const Napi::CallbackInfo& info) {
  Args args(info);
  int netns = args.Fd(0, "netns");
  int family = args.Int(1, "family", 4, 6);
  if (!args.Ok()) return info.Env().Undefined();

  UniqueFd made;
  SysError error;
  std::thread([&] {
    if (setns(netns, CLONE_NEWNET) < 0) {
      error = SysError::Last("setns");
      return;
    }
    made.Reset(socket(family == 6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!made.Valid()) error = SysError::Last("socket");
  }).join();
  if (error) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), made.Release());
}

// The address in `text` as `storage`; 0 when it is none, else its length.
socklen_t ParseAddress(const char* text, int port, sockaddr_storage* storage) {
  auto* v4 = reinterpret_cast<sockaddr_in*>(storage);
  if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons(static_cast<uint16_t>(port));
    return sizeof(*v4);
  }
  auto* v6 = reinterpret_cast<sockaddr_in6*>(storage);
  if (inet_pton(AF_INET6, text, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons(static_cast<uint16_t>(port));
    return sizeof(*v6);
  }
  return 0;
}

SysError Connect(int socket, const sockaddr_storage& address, socklen_t length, int timeout_ms) {
  if (connect(socket, reinterpret_cast<const sockaddr*>(&address), length) == 0) return {};
  if (errno != EINPROGRESS) return SysError::Last("connect");
  pollfd waiting = {socket, POLLOUT, 0};
  int ready = poll(&waiting, 1, timeout_ms);
  if (ready < 0) return SysError::Last("poll");
  if (ready == 0) return {"connect", ETIMEDOUT};
  int outcome = 0;
  socklen_t size = sizeof(outcome);
  if (getsockopt(socket, SOL_SOCKET, SO_ERROR, &outcome, &size) < 0) return SysError::Last("getsockopt");
  return {"connect", outcome};
}

Napi::Value TcpConnect(const Napi::CallbackInfo& info) {
  Args args(info);
  int socket = args.Fd(0, "socket");
  std::string text = args.Text(1, "address");
  int port = args.Int(2, "port", 1, 65535);
  int timeout = args.Int(3, "timeoutMs", 0, INT32_MAX);
  if (!args.Ok()) return info.Env().Undefined();

  sockaddr_storage address = {};
  socklen_t length = ParseAddress(text.c_str(), port, &address);
  if (length == 0) return ThrowInvalid(info.Env(), "address: expected a numeric IPv4 or IPv6 address");
  if (SysError error = Connect(socket, address, length, timeout)) return ThrowSysError(info.Env(), error);
  return info.Env().Undefined();
}

}  // namespace

void RegisterNetns(Napi::Env env, Napi::Object exports) {
  Export<TcpSocketIn>(env, exports, "tcpSocketIn");
  Export<TcpConnect>(env, exports, "tcpConnect");
}

}  // namespace forkd
