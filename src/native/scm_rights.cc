// Descriptors over Unix sockets: sendmsg(2) and recvmsg(2) with SCM_RIGHTS.
//
// Every call is made with MSG_DONTWAIT and waits in poll(2), so the timeout holds for blocking sockets as
// well.
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <vector>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "fd.h"

namespace forkd {

namespace {

constexpr int kFdsMax = 253;                // SCM_MAX_FD of the kernel
constexpr int kMessageBytesMax = 64 << 20;  // a buffer of this size is allocated a call
using Clock = std::chrono::steady_clock;

// Waits until the socket is ready for `events`, has failed or was hung up; ETIMEDOUT at the deadline.
SysError WaitFor(int socket, short events, Clock::time_point deadline, const char* syscall) {
  for (;;) {
    auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd waiting = {socket, events, 0};
    int ready = poll(&waiting, 1, left > 0 ? static_cast<int>(left) : 0);
    if (ready > 0) return {};
    if (ready == 0 && Clock::now() >= deadline) return {syscall, ETIMEDOUT};
    if (ready < 0 && errno != EINTR) return SysError::Last("poll");
  }
}

// Room for one SCM_RIGHTS message. It is as long as `fds` descriptors need and no longer (CMSG_LEN): the
// padding of CMSG_SPACE would let the kernel install one more than was asked for.
class ControlMessage {
 public:
  explicit ControlMessage(size_t fds) : length_(fds ? CMSG_LEN(fds * sizeof(int)) : 0) {
    words_.resize((CMSG_SPACE(fds * sizeof(int)) + sizeof(cmsghdr) - 1) / sizeof(cmsghdr));
  }
  void Attach(msghdr* message) {
    message->msg_control = length_ ? words_.data() : nullptr;
    message->msg_controllen = length_;
  }

 private:
  std::vector<cmsghdr> words_;  // cmsghdr for its alignment
  size_t length_;
};

SysError Send(int socket, std::span<const uint8_t> data, const std::vector<int>& fds,
              Clock::time_point deadline) {
  ControlMessage control(fds.size());
  bool fds_sent = fds.empty();
  while (!data.empty()) {
    iovec part = {const_cast<uint8_t*>(data.data()), data.size()};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (!fds_sent) {
      control.Attach(&message);
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
      memcpy(CMSG_DATA(header), fds.data(), fds.size() * sizeof(int));
    }
    ssize_t sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) {
      // A stream may take only a part: the descriptors travelled with its first byte.
      fds_sent = true;
      data = data.subspan(static_cast<size_t>(sent));
    } else if (errno == EAGAIN) {
      if (SysError error = WaitFor(socket, POLLOUT, deadline, "sendmsg")) return error;
    } else if (errno != EINTR) {
      return SysError::Last("sendmsg");
    }
  }
  return {};
}

void TakeFds(msghdr* message, std::vector<UniqueFd>* fds) {
  for (cmsghdr* header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      fds->emplace_back(fd);
    }
  }
}

SysError Receive(int socket, std::vector<uint8_t>* data, size_t fds_max, std::vector<UniqueFd>* fds,
                 Clock::time_point deadline) {
  for (;;) {
    ControlMessage control(fds_max);
    iovec part = {data->data(), data->size()};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    control.Attach(&message);
    ssize_t received = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (received >= 0) {
      TakeFds(&message, fds);
      // The rest is lost for good, so half a message is no message: the caller's UniqueFds close what did
      // arrive.
      if (message.msg_flags & (MSG_CTRUNC | MSG_TRUNC)) return {"recvmsg", EMSGSIZE};
      data->resize(static_cast<size_t>(received));
      return {};
    }
    if (errno == EAGAIN) {
      if (SysError error = WaitFor(socket, POLLIN, deadline, "recvmsg")) return error;
    } else if (errno != EINTR) {
      return SysError::Last("recvmsg");
    }
  }
}

// Where descriptors are known as soon as they have arrived, in memory that outlives the worker they came to:
// src/contract/custody.ts.
class Custody {
 public:
  static constexpr size_t kFirst = 2;

  explicit Custody(std::span<int32_t> words) : words_(words) {}

  // False when it was closed: then they are still the caller's.
  bool Take(std::vector<UniqueFd>* fds) {
    std::atomic_ref<int32_t> messages(words_[0]);
    int32_t before = messages.load(std::memory_order_acquire);
    if (before == kClosed) return false;
    words_[1] = static_cast<int32_t>(fds->size());
    for (size_t i = 0; i < fds->size(); i++) words_[kFirst + i] = (*fds)[i].Get();
    if (!messages.compare_exchange_strong(before, before + 1, std::memory_order_acq_rel)) return false;
    for (UniqueFd& fd : *fds) fd.Release();
    return true;
  }

 private:
  static constexpr int32_t kClosed = -1;
  std::span<int32_t> words_;
};

Napi::Value SocketPair(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string type = args.Text(0, "type");
  if (type != "stream" && type != "seqpacket") args.Refuse("type", "'stream' or 'seqpacket'");
  if (!args.Ok()) return {};

  int kind = type == "stream" ? SOCK_STREAM : SOCK_SEQPACKET;
  int pair[2];
  if (socketpair(AF_UNIX, kind | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) != 0) {
    return ThrowErrno(info.Env(), "socketpair");
  }
  Napi::Array result = Napi::Array::New(info.Env(), 2);
  result.Set(0u, pair[0]);
  result.Set(1u, pair[1]);
  return result;
}

Napi::Value UnixConnect(const Napi::CallbackInfo& info) {
  Args args(info);
  std::string path = args.Text(0, "path");
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) args.Refuse("path", "at most 107 bytes");
  if (!args.Ok()) return {};
  memcpy(address.sun_path, path.data(), path.size());

  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.Valid()) return ThrowErrno(info.Env(), "socket");
  if (connect(fd.Get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return ThrowErrno(info.Env(), "connect");
  }
  return Napi::Number::New(info.Env(), fd.Release());
}

Napi::Value SendFds(const Napi::CallbackInfo& info) {
  Args args(info);
  int socket = args.Fd(0, "socket");
  std::vector<int> fds = args.Fds(2, "fds");
  int timeout_ms = args.Int(3, "timeoutMs", 0, INT32_MAX);
  // Last: reading the array may run getters, and those could detach the buffer.
  std::span<uint8_t> data = args.Bytes(1, "data");
  // Descriptors travel with data only, and an empty message reads as end of file.
  if (args.Ok() && data.empty()) args.Refuse("data", "at least one byte");
  if (fds.size() > kFdsMax) args.Refuse("fds", "at most 253 descriptors");
  if (!args.Ok()) return {};

  auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  if (SysError error = Send(socket, data, fds, deadline)) return ThrowSysError(info.Env(), error);
  return info.Env().Undefined();
}

Napi::Value RecvFds(const Napi::CallbackInfo& info) {
  Args args(info);
  int socket = args.Fd(0, "socket");
  int bytes_max = args.Int(1, "maxBytes", 1, kMessageBytesMax);
  int fds_max = args.Int(2, "maxFds", 0, kFdsMax);
  int timeout_ms = args.Int(3, "timeoutMs", 0, INT32_MAX);
  bool has_custody = !info[4].IsUndefined();
  std::span<int32_t> custody = has_custody ? args.Int32s(4, "custody") : std::span<int32_t>();
  if (has_custody && args.Ok() && custody.size() < Custody::kFirst + static_cast<size_t>(fds_max)) {
    args.Refuse("custody", "room for maxFds descriptors");
  }
  if (!args.Ok()) return {};

  std::vector<uint8_t> data(static_cast<size_t>(bytes_max));
  std::vector<UniqueFd> fds;
  auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  if (SysError error = Receive(socket, &data, static_cast<size_t>(fds_max), &fds, deadline)) {
    return ThrowSysError(info.Env(), error);
  }
  std::vector<int> arrived;
  for (const UniqueFd& fd : fds) arrived.push_back(fd.Get());
  if (has_custody && !fds.empty() && !Custody(custody).Take(&fds)) {
    return ThrowSysError(info.Env(), {"recvmsg", ECANCELED});
  }

  Napi::Uint8Array bytes = Napi::Uint8Array::New(info.Env(), data.size());
  // In a worker that is being terminated nothing can be made any more: the descriptors close with their
  // owners.
  if (bytes.IsEmpty()) return {};
  if (!data.empty()) memcpy(bytes.Data(), data.data(), data.size());
  Napi::Array numbers = Napi::Array::New(info.Env(), arrived.size());
  for (uint32_t i = 0; i < arrived.size(); i++) {
    if (numbers.Set(i, arrived[i])) fds[i].Release();
  }
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("data", bytes);
  result.Set("fds", numbers);
  return result;
}

}  // namespace

void RegisterScmRights(Napi::Env env, Napi::Object exports) {
  Export<SocketPair>(env, exports, "socketPair");
  Export<UnixConnect>(env, exports, "unixConnect");
  Export<SendFds>(env, exports, "sendFds");
  Export<RecvFds>(env, exports, "recvFds");
}

}  // namespace forkd
