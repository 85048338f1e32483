// Files on their way out and in, a piece at a time: other streams and requests come between.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

struct transfer {
  struct stream stream;
  int fd;
  uint64_t size;
  // Of a file that is being written: where it will be, and where it is until then.
  char *path, *beside;
  mode_t mode;
};

static void release(struct transfer* one) {
  if (one->fd >= 0) close(one->fd);
  one->fd = -1;
  if (one->beside) unlink(one->beside);
  free(one->beside);
  one->beside = NULL;
}

static void on_free(struct stream* stream) {
  struct transfer* one = (struct transfer*)stream;
  release(one);
  free(one->path);
  free(one);
}

static void on_close(struct stream* stream) {
  release((struct transfer*)stream);
  stream_fail(stream, "Gone: the host has ended the transfer");
}

static void on_credit(struct stream* stream) {
  (void)stream;
}

static void tell_entry(struct stream* stream, const char* path, const struct stat* found) {
  struct text facts = {0};
  file_facts(&facts, base_name(path), found);
  stream_opened(stream, facts.data, facts.length);
  text_free(&facts);
}

// --- out
// -------------------------------------------------------------------------------------------------------------

static void no_data(struct stream* stream, const char* data, size_t length) {
  (void)stream, (void)data, (void)length;
}

static void no_end(struct stream* stream) {
  (void)stream;
}

static bool read_step(struct stream* stream) {
  struct transfer* one = (struct transfer*)stream;
  char data[CHUNK];
  if (stream->credit <= 0) return false;
  size_t room = stream->credit < CHUNK ? (size_t)stream->credit : CHUNK;
  ssize_t got = read(one->fd, data, room);
  if (got < 0 && errno == EINTR) return true;
  if (got < 0) {
    stream_fail_errno(stream, errno, one->path);
  } else if (got == 0) {
    stream_finish(stream, "{\"size\": %llu, \"exit_code\": 0}", (unsigned long long)one->size);
  } else {
    stream_data(stream, FROM_GUEST, data, (size_t)got);
    one->size += (uint64_t)got;
  }
  return !stream->finished;
}

static const struct stream_kind reading = {.data = no_data,
                                           .end = no_end,
                                           .credit = on_credit,
                                           .close = on_close,
                                           .step = read_step,
                                           .free = on_free};

static struct transfer* begin(const struct stream_kind* kind, struct caller caller,
                              const struct json* request, const char** path) {
  if (!path_of(caller, request, path)) return NULL;
  struct transfer* one = calloc(1, sizeof *one);
  if (!one || !stream_open(&one->stream, kind, caller, request)) {
    free(one);
    return NULL;
  }
  one->fd = -1;
  return one;
}

void read_file_start(struct caller caller, const struct json* request) {
  const char* path;
  struct stat found;
  struct transfer* one = begin(&reading, caller, request, &path);
  if (!one) return;
  one->path = strdup(path);
  // Without waiting: a pipe that nobody writes to must not keep the others waiting.
  one->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (one->fd < 0 || fstat(one->fd, &found) < 0)
    stream_fail_errno(&one->stream, errno, path);
  else if (S_ISDIR(found.st_mode))
    stream_fail_errno(&one->stream, EISDIR, path);
  else
    tell_entry(&one->stream, path, &found);
}

// --- in
// --------------------------------------------------------------------------------------------------------------

static void write_data(struct stream* stream, const char* data, size_t length) {
  struct transfer* one = (struct transfer*)stream;
  if (write_whole(one->fd, data, length)) {
    one->size += length;
    stream_consumed(stream, length);
    return;
  }
  stream_fail_errno(stream, errno, one->path);
  release(one);
}

static void write_end(struct stream* stream) {
  struct transfer* one = (struct transfer*)stream;
  if (fchmod(one->fd, one->mode) < 0 || rename(one->beside, one->path) < 0) {
    stream_fail_errno(stream, errno, one->path);
    release(one);
    return;
  }
  free(one->beside);
  one->beside = NULL;
  release(one);
  stream_finish(stream, "{\"size\": %llu, \"exit_code\": 0}", (unsigned long long)one->size);
}

static const struct stream_kind writing = {
    .data = write_data, .end = write_end, .credit = on_credit, .close = on_close, .free = on_free};

// Whole or not at all: into a file beside it, which then takes its name. 0, or an errno.
static int open_beside(struct transfer* one, const char* path, const struct json* request) {
  struct stat before;
  const struct json* parents = json_get(request, "parents");
  // Through a link to what it leads to, so that the link stays.
  char* real = realpath(path, NULL);
  one->path = real ? real : strdup(path);
  bool exists = stat(one->path, &before) == 0;
  if (exists && S_ISDIR(before.st_mode)) return EISDIR;
  int problem = parents && parents->kind == JSON_TRUE ? make_parents(one->path) : 0;
  int mode = file_mode(request, exists ? (int)(before.st_mode & 07777) : 0644);
  if (problem || mode < 0) return problem ? problem : EINVAL;
  uint64_t number = 0;
  if (getrandom(&number, sizeof number, GRND_NONBLOCK) < 0) number = (uint64_t)(now() * 1e9);
  if (asprintf(&one->beside, "%s.forkd-%012llx", one->path, (unsigned long long)number >> 16) < 0) abort();
  one->mode = (mode_t)mode;
  one->fd = open(one->beside, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (one->fd < 0) {
    problem = errno;
    free(one->beside);
    one->beside = NULL;
    return problem;
  }
  return exists && fchown(one->fd, before.st_uid, before.st_gid) < 0 ? errno : 0;
}

void write_file_start(struct caller caller, const struct json* request) {
  const char* path;
  struct transfer* one = begin(&writing, caller, request, &path);
  if (!one) return;
  int problem = open_beside(one, path, request);
  if (problem) {
    release(one);
    stream_fail_errno(&one->stream, problem, path);
  } else {
    stream_opened(&one->stream, "{}", 2);
  }
}
