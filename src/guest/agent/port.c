// magic u16le 0x4b46 | type u8 | flags u8 (0) | id u32le | length u32le | payload
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define PORT_NAME "forkd.agent.0"
#define PORTS "/sys/class/virtio-ports"
#define HEADER 12
#define PAYLOAD_MAX (64u << 20)
#define TYPE_MAX 15
enum { HELLO, REQUEST, REPLY, OPENED, DATA, CREDIT, END };

static int port = -1;
static struct text held;
// Of a frame that was refused: bytes still to come.
static size_t skipping;

static uint32_t read32(const char* at) {
  const unsigned char* b = (const unsigned char*)at;
  return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

static void write32(char* at, uint32_t value) {
  for (int i = 0; i < 4; i++) at[i] = (char)(value >> 8 * i);
}

// Whole or not at all: the rest is lost when the host hangs up, since nobody waits for it then.
// A host that is back is seen on another queue than its request: for a moment the request is here and the
// port still looks hung up. So long it is tried again before the answer is given up.
enum { HANG_UP_TRIES = 500, HANG_UP_PAUSE_NS = 2000000 };

static void write_all(const char* data, size_t length) {
  int hung_up = 0;
  while (length > 0) {
    ssize_t written = write(port, data, length);
    if (written > 0) {
      data += written;
      length -= (size_t)written;
    } else if (written < 0 && errno == EAGAIN) {
      struct pollfd wait = {.fd = port, .events = POLLOUT};
      if (poll(&wait, 1, -1) < 0 && errno != EINTR) return;
      if (!(wait.revents & POLLHUP)) continue;
      if (++hung_up > HANG_UP_TRIES) return;
      nanosleep(&(struct timespec){.tv_nsec = HANG_UP_PAUSE_NS}, NULL);
    } else if (written < 0 && errno == EINTR) {
      continue;
    } else {
      return;
    }
  }
}

static void write_head(char* frame, uint8_t type, uint32_t id, size_t length) {
  memcpy(frame, "FK", 2);
  frame[2] = (char)type;
  frame[3] = 0;
  write32(frame + 4, id);
  write32(frame + 8, (uint32_t)length);
}

void port_send_data(uint32_t id, uint8_t channel, const char* data, size_t length) {
  char frame[HEADER + 1 + CHUNK];
  write_head(frame, DATA, id, length + 1);
  frame[HEADER] = (char)channel;
  memcpy(frame + HEADER + 1, data, length);
  write_all(frame, HEADER + 1 + length);
}

void port_send(uint8_t type, uint32_t id, const char* payload, size_t length) {
  // In one write: what a host hears first should come in one piece.
  char* frame = malloc(HEADER + length);
  if (!frame) return;
  write_head(frame, type, id, length);
  memcpy(frame + HEADER, payload, length);
  write_all(frame, HEADER + length);
  free(frame);
}

static void drop(size_t bytes) {
  memmove(held.data, held.data + bytes, held.length - bytes);
  held.length -= bytes;
}

// Takes one frame, or skips what is none; false when more bytes are needed.
static bool next_frame(void) {
  if (skipping > 0) {
    size_t bytes = skipping < held.length ? skipping : held.length;
    drop(bytes);
    skipping -= bytes;
    if (skipping > 0) return false;
  }
  if (held.length < HEADER) return false;
  const char* head = held.data;
  if (head[0] != 'F' || head[1] != 'K' || (unsigned char)head[2] > TYPE_MAX || head[3] != 0) {
    const char* next = memchr(head + 1, 'F', held.length - 1);
    drop(next ? (size_t)(next - head) : held.length);
    return true;
  }
  struct caller caller = {.id = read32(head + 4)};
  uint32_t length = read32(head + 8);
  unsigned type = (unsigned char)head[2];
  if (length > PAYLOAD_MAX) {
    answer_error(caller, "FrameTooLarge: a request has at most %u bytes", PAYLOAD_MAX);
    drop(HEADER);
    skipping = length;
    return true;
  }
  if (held.length < HEADER + length) return false;
  if (type == REQUEST)
    handle_request(caller, head + HEADER, length);
  else if (type == DATA || type == CREDIT || type == END)
    streams_take((uint8_t)type, caller.id, head + HEADER, length);
  else
    answer_error(caller, "unknown frame type: %u", type);
  drop(HEADER + length);
  return true;
}

static void on_port(struct watch* watch, uint32_t events) {
  (void)watch, (void)events;
  char data[65536];
  for (;;) {
    ssize_t got = read(port, data, sizeof data);
    if (got < 0 && errno == EINTR) continue;
    if (got == 0) {
      // The host has hung up: what it began to say will not be finished.
      held.length = 0;
      skipping = 0;
      streams_drop();
    }
    if (got <= 0) return;
    text_add(&held, data, (size_t)got);
    while (next_frame())
      ;
  }
}

static bool name_is_ours(const char* entry) {
  char path[320], name[64] = {0};
  snprintf(path, sizeof path, PORTS "/%s/name", entry);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t got = read(fd, name, sizeof name - 1);
  close(fd);
  name[strcspn(name, "\n")] = 0;
  return got > 0 && strcmp(name, PORT_NAME) == 0;
}

bool port_open(void) {
  static struct watch watch = {on_port};
  DIR* dir = opendir(PORTS);
  if (!dir) return false;
  for (struct dirent* entry; port < 0 && (entry = readdir(dir));) {
    if (entry->d_name[0] == '.' || !name_is_ours(entry->d_name)) continue;
    char path[320];
    snprintf(path, sizeof path, "/dev/%s", entry->d_name);
    port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (port < 0) logf_("%s: %s", path, strerror(errno));
    // As udev would name it.
    mkdir("/dev/virtio-ports", 0755);
    snprintf(path, sizeof path, "../%s", entry->d_name);
    if (symlink(path, "/dev/virtio-ports/" PORT_NAME) < 0 && errno != EEXIST)
      logf_("virtio-ports: %s", strerror(errno));
  }
  closedir(dir);
  // On edges: a port whose host has hung up is always ready.
  if (port >= 0) watch_add(port, EPOLLIN | EPOLLET, &watch);
  return port >= 0;
}
