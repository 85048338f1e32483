// Netlink: a socket in a namespace, and one conversation at a time on it. Messages are made and read by
// src/net; here they are bytes, and the kernel's verdicts are errors.
#include <linux/netlink.h>
#include <poll.h>
#include <sys/socket.h>

#include <string>
#include <vector>

#include "addon.h"
#include "args.h"
#include "error.h"
#include "fd.h"
#include "netns.h"

namespace forkd {

namespace {

// The kernel's own buffer for a dump is at most 32 KiB (NLMSG_GOODSIZE and what netlink_dump asks for).
constexpr size_t kReceiveBytes = 64 * 1024;

Napi::Value NetlinkSocket(const Napi::CallbackInfo& info) {
  Args args(info);
  int netns = args.Fd(0, "netns");
  int protocol = args.Int(1, "protocol", 0, 31);
  if (!args.Ok()) return info.Env().Undefined();

  UniqueFd made;
  SysError error = InNamespace(netns, [&]() -> SysError {
    made.Reset(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol));
    return made.Valid() ? SysError{} : SysError::Last("socket");
  });
  if (error) return ThrowSysError(info.Env(), error);
  // A batch must go in one message: room for some thousand rules. Of no effect for who may not.
  const int room = 4 * 1024 * 1024;
  setsockopt(made.Get(), SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room);
  // The request is not repeated in a refusal, and the kernel says in words what it does not like.
  const int on = 1;
  setsockopt(made.Get(), SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  setsockopt(made.Get(), SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  return Napi::Number::New(info.Env(), made.Release());
}

// Answers that are due: one to each message that asks for an acknowledgement or for a dump.
int AnswersDue(std::span<const uint8_t> request) {
  int due = 0;
  for (size_t at = 0; at + sizeof(nlmsghdr) <= request.size();) {
    const auto* header = reinterpret_cast<const nlmsghdr*>(request.data() + at);
    if (header->nlmsg_len < sizeof(nlmsghdr) || header->nlmsg_len > request.size() - at) return -1;
    if ((header->nlmsg_flags & (NLM_F_ACK | NLM_F_DUMP)) != 0) due++;
    at += NLMSG_ALIGN(header->nlmsg_len);
  }
  return due;
}

// The kernel's words in a refusal (NLMSGERR_ATTR_MSG), or nothing.
std::string WordsOf(const nlmsghdr* header) {
  constexpr size_t kFixed = NLMSG_LENGTH(sizeof(nlmsgerr));
  if ((header->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return {};
  const auto* bytes = reinterpret_cast<const char*>(header);
  for (size_t at = kFixed; at + sizeof(nlattr) <= header->nlmsg_len;) {
    const auto* attribute = reinterpret_cast<const nlattr*>(bytes + at);
    if (attribute->nla_len < sizeof(nlattr) || attribute->nla_len > header->nlmsg_len - at) break;
    if ((attribute->nla_type & NLA_TYPE_MASK) == NLMSGERR_ATTR_MSG) {
      std::string text(bytes + at + NLA_HDRLEN, attribute->nla_len - NLA_HDRLEN);
      return text.substr(0, text.find('\0'));
    }
    at += NLA_ALIGN(attribute->nla_len);
  }
  return {};
}

struct Conversation {
  int due;
  std::vector<uint8_t> replies;
  SysError error;
  std::string words;

  void Hear(const uint8_t* data, size_t bytes) {
    for (size_t at = 0; at + sizeof(nlmsghdr) <= bytes && !error;) {
      const auto* header = reinterpret_cast<const nlmsghdr*>(data + at);
      if (header->nlmsg_len < sizeof(nlmsghdr) || header->nlmsg_len > bytes - at) break;
      const size_t length = NLMSG_ALIGN(header->nlmsg_len);
      if (header->nlmsg_type == NLMSG_DONE) {
        due--;
      } else if (header->nlmsg_type == NLMSG_ERROR && header->nlmsg_len >= NLMSG_LENGTH(sizeof(nlmsgerr))) {
        due--;
        const auto* verdict = reinterpret_cast<const nlmsgerr*>(data + at + NLMSG_HDRLEN);
        if (verdict->error != 0) {
          error = {"netlink", -verdict->error};
          words = WordsOf(header);
        }
      } else if (header->nlmsg_type >= NLMSG_MIN_TYPE) {
        replies.insert(replies.end(), data + at, data + at + header->nlmsg_len);
        replies.resize(NLMSG_ALIGN(replies.size()));
      }
      at += length;
    }
  }
};

Napi::Value NetlinkCall(const Napi::CallbackInfo& info) {
  Args args(info);
  int socket = args.Fd(0, "socket");
  std::span<uint8_t> request = args.Bytes(1, "request");
  int timeout = args.Int(2, "timeoutMs", 0, INT32_MAX);
  if (!args.Ok()) return info.Env().Undefined();
  Conversation talk{AnswersDue(request), {}, {}, {}};
  if (talk.due < 0) return ThrowInvalid(info.Env(), "request: a message is longer than the buffer");

  alignas(nlmsghdr) static thread_local uint8_t buffer[kReceiveBytes];
  // What a refused batch before this one has left: it is told of by its first refusal.
  while (recv(socket, buffer, sizeof buffer, MSG_DONTWAIT) > 0) {
  }
  if (send(socket, request.data(), request.size(), 0) < 0) return ThrowErrno(info.Env(), "send");
  while (talk.due > 0 && !talk.error) {
    pollfd waiting = {socket, POLLIN, 0};
    int ready = poll(&waiting, 1, timeout);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return ThrowErrno(info.Env(), "poll");
    if (ready == 0) return ThrowSysError(info.Env(), {"netlink", ETIMEDOUT});
    ssize_t got = recv(socket, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ThrowErrno(info.Env(), "recv");
    talk.Hear(buffer, static_cast<size_t>(got));
  }
  if (talk.error)
    return ThrowSysError(info.Env(), talk.error, talk.words.empty() ? nullptr : talk.words.c_str());
  return Napi::Buffer<uint8_t>::Copy(info.Env(), talk.replies.data(), talk.replies.size());
}

}  // namespace

void RegisterNetlink(Napi::Env env, Napi::Object exports) {
  Export<NetlinkSocket>(env, exports, "netlinkSocket");
  Export<NetlinkCall>(env, exports, "netlinkCall");
}

}  // namespace forkd
