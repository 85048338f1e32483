// One JSON line in, one JSON line out, then the connection is closed.
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"

#define PORT 8888
#define BACKLOG 128
#define REQUEST_MAX (64u << 20)

struct connection {
  struct watch watch;
  int fd;
  uint64_t number;
  bool asked;
  // What came in; then what is to go out.
  struct text text;
  size_t sent;
  struct connection* next;
};

static struct connection* connections;
static uint64_t numbers;
static int listener;

static void close_connection(struct connection* one) {
  struct connection** link = &connections;
  while (*link != one) link = &(*link)->next;
  *link = one->next;
  close(one->fd);
  text_free(&one->text);
  free(one);
}

static void send_more(struct connection* one) {
  while (one->sent < one->text.length) {
    ssize_t sent = send(one->fd, one->text.data + one->sent, one->text.length - one->sent, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno == EAGAIN) return;
    if (sent < 0) break;
    one->sent += (size_t)sent;
  }
  // What the client sent behind its request is read and dropped first: unread bytes would reset the
  // connection.
  char waste[4096];
  shutdown(one->fd, SHUT_WR);
  while (recv(one->fd, waste, sizeof waste, MSG_DONTWAIT) > 0)
    ;
  close_connection(one);
}

static void ask(struct connection* one) {
  char* newline = memchr(one->text.data, '\n', one->text.length);
  size_t length = newline ? (size_t)(newline - one->text.data) : one->text.length;
  struct text line = one->text;
  memset(&one->text, 0, sizeof one->text);
  one->asked = true;
  // An answer may close the connection.
  handle_request((struct caller){.connection = one->number}, line.data, length);
  text_free(&line);
}

static void on_connection(struct watch* watch, uint32_t events) {
  struct connection* one = (struct connection*)watch;
  if (one->asked) {
    if (events & EPOLLOUT && one->text.length > 0)
      send_more(one);
    else if (events & (EPOLLERR | EPOLLHUP))
      close_connection(one);
    return;
  }
  char data[16384];
  for (;;) {
    ssize_t got = recv(one->fd, data, sizeof data, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got < 0 || (got == 0 && one->text.length == 0) || one->text.length > REQUEST_MAX) {
      close_connection(one);
      return;
    }
    if (got > 0) text_add(&one->text, data, (size_t)got);
    if (got == 0 || memchr(data, '\n', (size_t)got)) {
      ask(one);
      return;
    }
  }
}

static void on_listener(struct watch* watch, uint32_t events) {
  (void)watch, (void)events;
  int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  struct connection* one = calloc(1, sizeof *one);
  if (!one) {
    close(fd);
    return;
  }
  one->watch.ready = on_connection;
  one->fd = fd;
  one->number = ++numbers;
  one->next = connections;
  connections = one;
  watch_add(fd, EPOLLIN | EPOLLET | EPOLLOUT, &one->watch);
}

void tcp_answer(uint64_t connection, const char* body, size_t length) {
  struct connection* one = connections;
  while (one && one->number != connection) one = one->next;
  // The client has gone.
  if (!one) return;
  text_add(&one->text, body, length);
  text_add(&one->text, "\n", 1);
  send_more(one);
}

void tcp_open(void) {
  static struct watch watch = {on_listener};
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(PORT)};
  int on = 1;
  listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
      bind(listener, (struct sockaddr*)&address, sizeof address) < 0 || listen(listener, BACKLOG) < 0) {
    logf_("tcp: %s", strerror(errno));
    return;
  }
  watch_add(listener, EPOLLIN, &watch);
}
