// Network namespaces: made, named, entered to make something that belongs there.
#include "netns.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <cstring>
#include <thread>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "fd.h"

namespace forkd {

namespace {

Napi::Value NetnsCreate(const Napi::CallbackInfo& info) {
  UniqueFd made;
  SysError error;
  std::thread([&] {
    if (unshare(CLONE_NEWNET) < 0) {
      error = SysError::Last("unshare");
      return;
    }
    made.Reset(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    if (!made.Valid()) error = SysError::Last("open");
  }).join();
  if (error) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), made.Release());
}

Napi::Value NetnsBind(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string from = "/proc/self/fd/" + std::to_string(args.Fd(0, "netns"));
  std::string path = args.Text(1, "path");
  if (!args.Ok()) return info.Env().Undefined();
  if (mount(from.c_str(), path.c_str(), nullptr, MS_BIND, nullptr) < 0)
    return ThrowErrno(info.Env(), "mount", path.c_str());
  return info.Env().Undefined();
}

Napi::Value NetnsUnbind(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string path = args.Text(0, "path");
  if (!args.Ok()) return info.Env().Undefined();
  if (umount2(path.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) < 0)
    return ThrowErrno(info.Env(), "umount2", path.c_str());
  return info.Env().Undefined();
}

Napi::Value NetnsOf(const Napi::CallbackInfo& info) {
  Args args(info);
  int pidfd = args.Fd(0, "pidfd");
  int theirs = args.Fd(1, "fd");
  if (!args.Ok()) return info.Env().Undefined();
  UniqueFd tap(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd, theirs, 0)));
  if (!tap.Valid()) return ThrowErrno(info.Env(), "pidfd_getfd");
  int netns = ioctl(tap.Get(), TUNGETDEVNETNS);
  if (netns < 0) return ThrowErrno(info.Env(), "ioctl");
  fcntl(netns, F_SETFD, FD_CLOEXEC);
  return Napi::Number::New(info.Env(), netns);
}

Napi::Value NetnsOfSocket(const Napi::CallbackInfo& info) {
  Args args(info);
  int socket = args.Fd(0, "socket");
  if (!args.Ok()) return info.Env().Undefined();
  int netns = ioctl(socket, SIOCGSKNS);
  if (netns < 0) return ThrowErrno(info.Env(), "ioctl");
  fcntl(netns, F_SETFD, FD_CLOEXEC);
  return Napi::Number::New(info.Env(), netns);
}

// Opened in the namespace: an open /dev/net/tun holds the one it was opened in.
Napi::Value TapCreate(const Napi::CallbackInfo& info) {
  Args args(info);
  int netns = args.Fd(0, "netns");
  std::string name = args.Text(1, "name");
  bool stays = args.Bool(2, "stays");
  if (args.Ok() && name.size() >= IFNAMSIZ) args.Refuse("name", "at most 15 characters");
  if (!args.Ok()) return info.Env().Undefined();

  UniqueFd made;
  SysError error = InNamespace(netns, [&]() -> SysError {
    made.Reset(open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK));
    if (!made.Valid()) return SysError::Last("open");
    ifreq request = {};
    memcpy(request.ifr_name, name.c_str(), name.size());
    request.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    if (ioctl(made.Get(), TUNSETIFF, &request) < 0) return SysError::Last("ioctl");
    if (stays && ioctl(made.Get(), TUNSETPERSIST, 1) < 0) return SysError::Last("ioctl");
    return {};
  });
  if (error) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), made.Release());
}

// A signalfd of no signal: it never becomes readable, takes nothing, and is no way to anywhere.
Napi::Value TapNowhere(const Napi::CallbackInfo& info) {
  sigset_t none;
  sigemptyset(&none);
  int fd = signalfd(-1, &none, SFD_CLOEXEC | SFD_NONBLOCK);
  if (fd < 0) return ThrowErrno(info.Env(), "signalfd");
  return Napi::Number::New(info.Env(), fd);
}

Napi::Value SocketIn(const Napi::CallbackInfo& info, int type) {
  Args args(info);
  int netns = args.Fd(0, "netns");
  int family = args.Int(1, "family", 4, 6);
  if (!args.Ok()) return info.Env().Undefined();

  UniqueFd made;
  SysError error = InNamespace(netns, [&]() -> SysError {
    made.Reset(socket(family == 6 ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    return made.Valid() ? SysError{} : SysError::Last("socket");
  });
  if (error) return ThrowSysError(info.Env(), error);
  return Napi::Number::New(info.Env(), made.Release());
}

Napi::Value TcpSocketIn(const Napi::CallbackInfo& info) {
  return SocketIn(info, SOCK_STREAM);
}
Napi::Value UdpSocketIn(const Napi::CallbackInfo& info) {
  return SocketIn(info, SOCK_DGRAM);
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

Napi::Value InetBind(const Napi::CallbackInfo& info) {
  Args args(info);
  int socket = args.Fd(0, "socket");
  std::string text = args.Text(1, "address");
  int port = args.Int(2, "port", 0, 65535);
  bool listens = args.Bool(3, "listens");
  if (!args.Ok()) return info.Env().Undefined();

  sockaddr_storage address = {};
  socklen_t length = ParseAddress(text.c_str(), port, &address);
  if (length == 0) return ThrowInvalid(info.Env(), "address: expected a numeric IPv4 or IPv6 address");
  const int on = 1;
  if (setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
    return ThrowErrno(info.Env(), "setsockopt");
  if (bind(socket, reinterpret_cast<const sockaddr*>(&address), length) < 0)
    return ThrowErrno(info.Env(), "bind");
  if (listens && listen(socket, 16) < 0) return ThrowErrno(info.Env(), "listen");
  return info.Env().Undefined();
}

}  // namespace

void RegisterNetns(Napi::Env env, Napi::Object exports) {
  Export<NetnsCreate>(env, exports, "netnsCreate");
  Export<NetnsBind>(env, exports, "netnsBind");
  Export<NetnsUnbind>(env, exports, "netnsUnbind");
  Export<NetnsOf>(env, exports, "netnsOf");
  Export<NetnsOfSocket>(env, exports, "netnsOfSocket");
  Export<TapCreate>(env, exports, "tapCreate");
  Export<TapNowhere>(env, exports, "tapNowhere");
  Export<UdpSocketIn>(env, exports, "udpSocketIn");
  Export<InetBind>(env, exports, "inetBind");
  Export<TcpSocketIn>(env, exports, "tcpSocketIn");
  Export<TcpConnect>(env, exports, "tcpConnect");
}

}  // namespace forkd
