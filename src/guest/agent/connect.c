// Connections to services inside the guest, carried by a stream: no network card is needed for them.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.h"

struct connection {
  struct stream stream;
  // While it is being made.
  struct watch watch;
  int fd;
  struct source source;
  struct sink sink;
  int done;
};

static void release(struct connection* one) {
  source_close(&one->source);
  sink_close(&one->sink);
  if (one->fd < 0) return;
  watch_remove(one->fd);
  close(one->fd);
  one->fd = -1;
}

// Ends when both directions have ended.
static void half(struct connection* one) {
  if (++one->done < 2) return;
  release(one);
  stream_finish(&one->stream, "{\"exit_code\": 0}");
}

static size_t room(struct source* source) {
  int64_t credit = ((struct connection*)source->owner)->stream.credit;
  return credit > 0 ? (size_t)credit : 0;
}

static void give(struct source* source, const char* data, size_t length) {
  struct connection* one = source->owner;
  if (length > 0) {
    stream_data(&one->stream, FROM_GUEST, data, length);
    return;
  }
  stream_end(&one->stream, FROM_GUEST);
  half(one);
}

static void consumed(struct sink* sink, size_t bytes) {
  stream_consumed(&((struct connection*)sink->owner)->stream, bytes);
}

static void all_written(struct sink* sink) {
  struct connection* one = sink->owner;
  if (one->fd >= 0) shutdown(one->fd, SHUT_WR);
  half(one);
}

static void give_up(struct connection* one, int number) {
  release(one);
  stream_fail_errno(&one->stream, number, NULL);
}

static void connected(struct watch* watch, uint32_t events) {
  struct connection* one = (struct connection*)((char*)watch - offsetof(struct connection, watch));
  (void)events;
  int number = 0, on = 1;
  socklen_t length = sizeof number;
  watch_remove(one->fd);
  getsockopt(one->fd, SOL_SOCKET, SO_ERROR, &number, &length);
  if (number) {
    give_up(one, number);
    return;
  }
  // Not of a Unix socket: then it fails, and nothing is lost.
  setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  // One descriptor for each direction: each is watched by itself.
  sink_open(&one->sink, fcntl(one->fd, F_DUPFD_CLOEXEC, 0), one, consumed, all_written);
  source_open(&one->source, fcntl(one->fd, F_DUPFD_CLOEXEC, 0), one, room, give);
  stream_opened(&one->stream, "{}", 2);
  source_resume(&one->source);
}

static void on_data(struct stream* stream, const char* data, size_t length) {
  sink_take(&((struct connection*)stream)->sink, data, length);
}

static void on_end(struct stream* stream) {
  sink_finish(&((struct connection*)stream)->sink);
}

static void on_credit(struct stream* stream) {
  source_resume(&((struct connection*)stream)->source);
}

static void on_close(struct stream* stream) {
  release((struct connection*)stream);
  stream_finish(stream, "{\"exit_code\": 0}");
}

static void on_free(struct stream* stream) {
  free(stream);
}

static const struct stream_kind kind = {
    .data = on_data, .end = on_end, .credit = on_credit, .close = on_close, .free = on_free};

union address {
  struct sockaddr any;
  struct sockaddr_in four;
  struct sockaddr_in6 six;
  struct sockaddr_un path;
};

// Its length; 0 when there is no such address. There is no resolver in a static program: numbers, and
// localhost.
static socklen_t read_address(const struct json* request, union address* address) {
  const char *path = json_text(request, "path"), *host = json_text(request, "host");
  const struct json* port = json_get(request, "port");
  memset(address, 0, sizeof *address);
  if (path) {
    address->path.sun_family = AF_UNIX;
    if (strlen(path) >= sizeof address->path.sun_path) return 0;
    strcpy(address->path.sun_path, path);
    return sizeof address->path;
  }
  if (!port || port->kind != JSON_NUMBER || port->number < 1 || port->number > 65535) return 0;
  if (!host || !*host || strcmp(host, "localhost") == 0) host = "127.0.0.1";
  address->four.sin_port = htons((uint16_t)port->number);
  if (inet_pton(AF_INET, host, &address->four.sin_addr) == 1) {
    address->four.sin_family = AF_INET;
    return sizeof address->four;
  }
  if (inet_pton(AF_INET6, host, &address->six.sin6_addr) != 1) return 0;
  address->six.sin6_family = AF_INET6;
  return sizeof address->six;
}

void connect_start(struct caller caller, const struct json* request) {
  union address address;
  socklen_t length = read_address(request, &address);
  if (length == 0) {
    answer_error(caller, "ValueError: connect needs a port and a numeric host, or a path");
    return;
  }
  struct connection* one = calloc(1, sizeof *one);
  if (!one || !stream_open(&one->stream, &kind, caller, request)) {
    free(one);
    return;
  }
  one->source.fd = one->sink.fd = -1;
  sink_open(&one->sink, -1, one, consumed, all_written);
  one->watch.ready = connected;
  one->fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  int result = one->fd < 0 ? -1 : connect(one->fd, &address.any, length);
  if (result < 0 && errno != EINPROGRESS) {
    give_up(one, errno);
    return;
  }
  watch_add(one->fd, EPOLLOUT, &one->watch);
}
