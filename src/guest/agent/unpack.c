// A tar archive into a directory: ustar, with the longer names of pax and GNU tar. It is taken as it comes.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent.h"
#include "tar.h"

// Of an extended header: names, and attributes that are not looked at.
#define EXTENDED_MAX (1024 * 1024)

struct unpack {
  struct stream stream;
  char* path;
  // A header that is not all here, or an extended one's content.
  struct text held;
  // What of a member's content is to come, with what fills its last block.
  uint64_t left, padding;
  // The file that gets it; -1: nobody does.
  int fd;
  // Of the member: its header, and what an extended one said instead.
  struct tar_header header;
  char *name, *target;
  int64_t size;
  char* at;
  bool is_extended, began, ended;
  uint64_t entries;
};

static uint64_t octal(const char* field, size_t width) {
  uint64_t value = 0;
  // Base 256, as GNU tar writes what does not fit.
  if ((unsigned char)field[0] == 0x80) {
    for (size_t i = 1; i < width; i++) value = value << 8 | (unsigned char)field[i];
    return value;
  }
  for (size_t i = 0; i < width && field[i]; i++)
    if (field[i] >= '0' && field[i] <= '7') value = value * 8 + (uint64_t)(field[i] - '0');
  return value;
}

static bool has_sum(const struct tar_header* header) {
  unsigned sum = 0;
  for (size_t i = 0; i < sizeof *header; i++) {
    bool is_sum = i >= offsetof(struct tar_header, checksum) && i < offsetof(struct tar_header, type);
    sum += is_sum ? ' ' : ((const unsigned char*)header)[i];
  }
  return sum == octal(header->checksum, sizeof header->checksum);
}

static void forget(struct unpack* one) {
  free(one->name);
  free(one->target);
  free(one->at);
  one->name = one->target = one->at = NULL;
  one->size = -1;
}

static void broken(struct unpack* one, const char* why) {
  stream_fail(&one->stream, "ReadError: %s", why);
}

// In the directory, without `.` and double slashes; null when it leads out of it.
static char* inside(const char* path, const char* name) {
  char* at;
  if (*name == '/' || asprintf(&at, "%s", path) < 0) return NULL;
  size_t base = strlen(at);
  for (const char* part = name; *part;) {
    size_t length = strcspn(part, "/");
    bool is_up = length == 2 && part[0] == '.' && part[1] == '.';
    char* longer = at;
    if (is_up) {
      if (strlen(at) == base) break;
      *strrchr(at, '/') = 0;
    } else if (length > 0 && !(length == 1 && part[0] == '.')) {
      if (asprintf(&longer, "%s/%.*s", at, (int)length, part) < 0) abort();
      free(at);
      at = longer;
    }
    part += length;
    while (*part == '/') part++;
    if (*part == 0) return at;
  }
  if (*name == 0) return at;
  free(at);
  return NULL;
}

static void own(struct unpack* one, bool is_link) {
  const struct tar_header* header = &one->header;
  uid_t uid = (uid_t)octal(header->uid, sizeof header->uid);
  gid_t gid = (gid_t)octal(header->gid, sizeof header->gid);
  struct timespec times[2] = {{.tv_nsec = UTIME_OMIT},
                              {.tv_sec = (time_t)octal(header->mtime, sizeof header->mtime)}};
  if (lchown(one->at, uid, gid) < 0) logf_("unpack: %s: %s", one->at, strerror(errno));
  if (!is_link && chmod(one->at, (mode_t)octal(header->mode, sizeof header->mode) & 07777) < 0)
    logf_("unpack: %s: %s", one->at, strerror(errno));
  utimensat(AT_FDCWD, one->at, times, AT_SYMLINK_NOFOLLOW);
}

static int make_special(struct unpack* one, char type) {
  const struct tar_header* header = &one->header;
  dev_t device = makedev((unsigned)octal(header->major, sizeof header->major),
                         (unsigned)octal(header->minor, sizeof header->minor));
  mode_t kind = type == '3' ? S_IFCHR : type == '4' ? S_IFBLK : S_IFIFO;
  return mknod(one->at, kind | 0600, device);
}

// What is there gives way, but for a directory.
static int make_member(struct unpack* one, char type) {
  if (type == '5') return mkdir(one->at, 0700) < 0 && errno != EEXIST ? -1 : 0;
  if (type != '0' && unlink(one->at) < 0 && errno != ENOENT) return -1;
  if (type == '2') return symlink(one->target, one->at);
  if (type == '1') {
    char* from = inside(one->path, one->target);
    int result = from ? link(from, one->at) : -1;
    free(from);
    return result;
  }
  if (type != '0') return make_special(one, type);
  one->fd = open(one->at, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  return one->fd < 0 ? -1 : 0;
}

static void end_member(struct unpack* one) {
  if (one->fd >= 0) {
    close(one->fd);
    one->fd = -1;
    own(one, false);
  }
  forget(one);
}

static char* field(const char* data, size_t width) {
  char* text = strndup(data, width);
  if (!text) abort();
  return text;
}

static void begin_member(struct unpack* one) {
  const struct tar_header* header = &one->header;
  char type = header->type == 0 || header->type == '7' ? '0' : header->type;
  if (!one->name) {
    bool has_prefix = memcmp(header->magic, "ustar", 6) == 0 && header->prefix[0];
    char *name = field(header->name, sizeof header->name),
         *prefix = field(header->prefix, sizeof header->prefix);
    if (has_prefix && asprintf(&one->name, "%s/%s", prefix, name) < 0) abort();
    if (!has_prefix) one->name = strdup(name);
    free(name);
    free(prefix);
  }
  if (!one->target) one->target = field(header->target, sizeof header->target);
  one->left = one->size >= 0 ? (uint64_t)one->size : octal(header->size, sizeof header->size);
  // Links and devices have no content, whatever the field says.
  if (type >= '1' && type <= '6') one->left = 0;
  one->padding = (TAR_BLOCK - one->left % TAR_BLOCK) % TAR_BLOCK;
  one->at = inside(one->path, one->name);
  if (!one->at) {
    stream_fail(&one->stream, "ValueError: '%.200s' is outside", one->name);
    return;
  }
  one->entries++;
  // Kinds that nobody knows are passed over.
  if (type >= '0' && type <= '6') {
    int problem = make_parents(one->at);
    if (!problem && make_member(one, type) < 0) problem = errno;
    if (problem) {
      stream_fail_errno(&one->stream, problem, one->name);
      return;
    }
    if (type != '0') own(one, type == '2');
  }
  if (one->left == 0) end_member(one);
}

// `LENGTH key=value\n`, one after the other.
static void read_pax(struct unpack* one, const char* data, size_t length) {
  while (length > 0) {
    size_t size = strtoul(data, NULL, 10);
    const char* space = memchr(data, ' ', length);
    if (size == 0 || size > length || !space || space >= data + size) return;
    const char* key = space + 1;
    const char* equals = memchr(key, '=', (size_t)(data + size - key));
    if (!equals) return;
    size_t key_length = (size_t)(equals - key), value_length = (size_t)(data + size - 1 - (equals + 1));
    char** wanted = key_length == 4 && memcmp(key, "path", 4) == 0       ? &one->name
                    : key_length == 8 && memcmp(key, "linkpath", 8) == 0 ? &one->target
                                                                         : NULL;
    if (wanted) {
      free(*wanted);
      *wanted = field(equals + 1, value_length);
    }
    if (key_length == 4 && memcmp(key, "size", 4) == 0) one->size = strtoll(equals + 1, NULL, 10);
    data += size;
    length -= size;
  }
}

static void end_extended(struct unpack* one) {
  char type = one->header.type;
  one->is_extended = false;
  text_add(&one->held, "", 0);
  if (type == 'x') read_pax(one, one->held.data, one->held.length);
  if (type == 'L' || type == 'K') {
    char** wanted = type == 'L' ? &one->name : &one->target;
    free(*wanted);
    *wanted = field(one->held.data, one->held.length);
  }
  one->held.length = 0;
}

static void begin_block(struct unpack* one) {
  static const char zeros[TAR_BLOCK];
  memcpy(&one->header, one->held.data, TAR_BLOCK);
  one->held.length = 0;
  one->began = true;
  if (memcmp(&one->header, zeros, TAR_BLOCK) == 0) {
    one->ended = true;
    return;
  }
  if (!has_sum(&one->header)) {
    broken(one, "bad checksum");
    return;
  }
  char type = one->header.type;
  one->is_extended = type == 'x' || type == 'g' || type == 'L' || type == 'K';
  if (!one->is_extended) {
    begin_member(one);
    return;
  }
  one->left = octal(one->header.size, sizeof one->header.size);
  one->padding = (TAR_BLOCK - one->left % TAR_BLOCK) % TAR_BLOCK;
  if (one->left > EXTENDED_MAX) broken(one, "an extended header is too large");
  if (one->left == 0) end_extended(one);
}

// Takes some of what came; how much.
static size_t take(struct unpack* one, const char* data, size_t length) {
  // What pads the archive.
  if (one->ended) return length;
  if (one->left > 0) {
    size_t part = one->left < length ? (size_t)one->left : length;
    if (one->is_extended) {
      text_add(&one->held, data, part);
    } else if (one->fd >= 0 && !write_whole(one->fd, data, part)) {
      stream_fail_errno(&one->stream, errno, one->name);
      return length;
    }
    one->left -= part;
    if (one->left == 0 && one->is_extended)
      end_extended(one);
    else if (one->left == 0)
      end_member(one);
    return part;
  }
  if (one->padding > 0) {
    size_t part = one->padding < length ? (size_t)one->padding : length;
    one->padding -= part;
    return part;
  }
  size_t wanted = TAR_BLOCK - one->held.length, part = wanted < length ? wanted : length;
  text_add(&one->held, data, part);
  if (one->held.length == TAR_BLOCK) begin_block(one);
  return part;
}

static void on_data(struct stream* stream, const char* data, size_t length) {
  struct unpack* one = (struct unpack*)stream;
  size_t all = length;
  while (length > 0 && !stream->finished) {
    size_t part = take(one, data, length);
    data += part;
    length -= part;
  }
  stream_consumed(stream, all);
}

static void on_end(struct stream* stream) {
  struct unpack* one = (struct unpack*)stream;
  if (!one->began)
    broken(one, "empty file");
  else if (!one->ended && (one->left > 0 || one->held.length > 0))
    broken(one, "unexpected end of data");
  else
    stream_finish(stream, "{\"entries\": %llu, \"exit_code\": 0}", (unsigned long long)one->entries);
}

static void on_credit(struct stream* stream) {
  (void)stream;
}

static void on_close(struct stream* stream) {
  stream_fail(stream, "Gone: the host has ended the transfer");
}

static void on_free(struct stream* stream) {
  struct unpack* one = (struct unpack*)stream;
  if (one->fd >= 0) close(one->fd);
  forget(one);
  text_free(&one->held);
  free(one->path);
  free(one);
}

static const struct stream_kind kind = {
    .data = on_data, .end = on_end, .credit = on_credit, .close = on_close, .free = on_free};

void unpack_start(struct caller caller, const struct json* request) {
  const char* path;
  if (!path_of(caller, request, &path)) return;
  struct unpack* one = calloc(1, sizeof *one);
  if (!one || !stream_open(&one->stream, &kind, caller, request)) {
    free(one);
    return;
  }
  one->fd = -1;
  one->size = -1;
  one->path = strdup(path);
  size_t length = strlen(one->path);
  while (length > 1 && one->path[length - 1] == '/') one->path[--length] = 0;
  int problem = make_dirs(one->path, 0755);
  if (problem)
    stream_fail_errno(&one->stream, problem, path);
  else
    stream_opened(&one->stream, "{}", 2);
}
