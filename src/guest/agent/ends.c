// The two ends of a stream that are descriptors: bytes out of one, and bytes into one.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "agent.h"

static void source_ready(struct watch* watch, uint32_t events) {
  struct source* source = (struct source*)watch;
  char data[CHUNK];
  (void)events;
  size_t room = source->room(source);
  if (source->left >= 0 && (size_t)source->left < room) room = (size_t)source->left;
  if (room > sizeof data) room = sizeof data;
  if (room == 0) {
    watch_remove(source->fd);
    source->waits = false;
    return;
  }
  ssize_t got = read(source->fd, data, room);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  // A terminal whose last user is gone says EIO, a broken connection ECONNRESET.
  if (got < 0) got = 0;
  if (source->left >= 0) source->left -= got;
  if (got == 0) source_close(source);
  source->give(source, data, (size_t)got);
}

void source_open(struct source* source, int fd, void* owner, size_t (*room)(struct source*),
                 void (*give)(struct source*, const char*, size_t)) {
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  *source = (struct source){
      .watch = {source_ready}, .fd = fd, .left = -1, .owner = owner, .room = room, .give = give};
}

void source_resume(struct source* source) {
  if (source->fd < 0 || source->waits) return;
  source->waits = true;
  watch_add(source->fd, EPOLLIN, &source->watch);
}

void source_close(struct source* source) {
  if (source->fd < 0) return;
  if (source->waits) watch_remove(source->fd);
  close(source->fd);
  source->fd = -1;
}

static void sink_over(struct sink* sink) {
  if (!sink->ends) return;
  sink->ends = false;
  sink->ended(sink);
}

static void sink_write(struct sink* sink) {
  while (sink->sent < sink->queue.length) {
    ssize_t written = write(sink->fd, sink->queue.data + sink->sent, sink->queue.length - sink->sent);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) {
      if (!sink->waits) watch_add(sink->fd, EPOLLOUT, &sink->watch);
      sink->waits = true;
      return;
    }
    if (written < 0) {
      sink_close(sink);
      sink_over(sink);
      return;
    }
    sink->sent += (size_t)written;
    sink->consumed(sink, (size_t)written);
  }
  if (sink->waits) watch_remove(sink->fd);
  sink->waits = false;
  sink->queue.length = sink->sent = 0;
  sink_over(sink);
}

static void sink_ready(struct watch* watch, uint32_t events) {
  (void)events;
  sink_write((struct sink*)watch);
}

void sink_open(struct sink* sink, int fd, void* owner, void (*consumed)(struct sink*, size_t),
               void (*ended)(struct sink*)) {
  if (fd >= 0) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
  *sink =
      (struct sink){.watch = {sink_ready}, .fd = fd, .owner = owner, .consumed = consumed, .ended = ended};
}

void sink_take(struct sink* sink, const char* data, size_t length) {
  if (sink->fd < 0) {
    // Nobody reads it any more: the host need not wait for it.
    sink->consumed(sink, length);
    return;
  }
  text_add(&sink->queue, data, length);
  if (!sink->waits) sink_write(sink);
}

void sink_finish(struct sink* sink) {
  sink->ends = true;
  if (sink->sent == sink->queue.length) sink_over(sink);
}

void sink_close(struct sink* sink) {
  if (sink->fd < 0) return;
  if (sink->waits) watch_remove(sink->fd);
  close(sink->fd);
  sink->fd = -1;
  sink->waits = false;
  size_t left = sink->queue.length - sink->sent;
  text_free(&sink->queue);
  sink->sent = 0;
  if (left > 0) sink->consumed(sink, left);
}
