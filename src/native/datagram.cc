// One datagram to a Unix socket: Node has none for AF_UNIX. sd_notify(3) is such a datagram.
#include <sys/socket.h>
#include <sys/un.h>

#include <cstddef>
#include <cstring>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "fd.h"

namespace forkd {

namespace {

Napi::Value DatagramSend(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string path = args.Text(0, "path");
  std::string text = args.Text(1, "text");
  if (!args.Ok()) return {};
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  // A name in the abstract namespace, which is spelled with an @, has no byte of zero behind it.
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return ThrowInvalid(info.Env(), "path is empty or longer than a socket's may be");
  }
  memcpy(address.sun_path, path.data(), path.size());
  if (path[0] == '@') address.sun_path[0] = '\0';
  socklen_t length = offsetof(sockaddr_un, sun_path) + path.size() + (path[0] == '@' ? 0 : 1);
  UniqueFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd.Valid()) return ThrowErrno(info.Env(), "socket");
  if (sendto(fd.Get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
             reinterpret_cast<const sockaddr*>(&address), length) < 0) {
    return ThrowErrno(info.Env(), "sendto", path.c_str());
  }
  return info.Env().Undefined();
}

}  // namespace

void RegisterDatagram(Napi::Env env, Napi::Object exports) {
  Export<DatagramSend>(env, exports, "datagramSend");
}

}  // namespace forkd
