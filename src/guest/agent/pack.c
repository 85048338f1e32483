// A directory, or one file, as a tar archive (ustar; pax headers for what does not fit), a piece at a time.
#include <dirent.h>
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

struct level {
  DIR* dir;
  // In the archive, with a slash at its end.
  char* name;
  struct level* above;
};

struct pack {
  struct stream stream;
  // What is to be sent.
  struct text out;
  size_t sent;
  struct level* level;
  // The file whose content is next, and how much of it is to come.
  int fd;
  uint64_t left;
  size_t padding;
  bool ended;
};

static void add_octal(char* field, size_t width, uint64_t value) {
  snprintf(field, width, "%0*llo", (int)width - 1, (unsigned long long)value);
}

static void add_block(struct pack* one, struct tar_header* header) {
  unsigned sum = 0;
  memcpy(header->magic, "ustar", 6);
  memcpy(header->version, "00", 2);
  memset(header->checksum, ' ', sizeof header->checksum);
  for (size_t i = 0; i < sizeof *header; i++) sum += ((unsigned char*)header)[i];
  snprintf(header->checksum, sizeof header->checksum, "%06o", sum);
  header->checksum[7] = ' ';
  text_add(&one->out, header, sizeof *header);
}

static void add_padding(struct pack* one, size_t length) {
  static const char zeros[TAR_BLOCK];
  if (length % TAR_BLOCK) text_add(&one->out, zeros, TAR_BLOCK - length % TAR_BLOCK);
}

// `LENGTH key=value\n`, where the length counts itself.
static void add_record(struct text* records, const char* key, const char* value) {
  size_t rest = strlen(key) + strlen(value) + 3, length = rest + 1;
  char digits[32];
  for (size_t before = 0; before != length;) {
    before = length;
    length = rest + (size_t)snprintf(digits, sizeof digits, "%zu", length);
  }
  text_addf(records, "%zu %s=", length, key);
  text_add(records, value, strlen(value));
  text_add(records, "\n", 1);
}

static void add_number(struct text* records, const char* key, uint64_t value) {
  char digits[32];
  snprintf(digits, sizeof digits, "%llu", (unsigned long long)value);
  add_record(records, key, digits);
}

static void add_header(struct pack* one, const char* name, const char* target, char type,
                       const struct stat* found) {
  struct tar_header header = {0};
  struct text records = {0};
  uint64_t size = type == '0' ? (uint64_t)found->st_size : 0;
  if (strlen(name) > sizeof header.name) add_record(&records, "path", name);
  if (strlen(target) > sizeof header.target) add_record(&records, "linkpath", target);
  if (size > TAR_SIZE_MAX) add_number(&records, "size", size);
  if (found->st_uid > TAR_ID_MAX) add_number(&records, "uid", found->st_uid);
  if (found->st_gid > TAR_ID_MAX) add_number(&records, "gid", found->st_gid);
  if (records.length > 0) {
    struct tar_header extended = {.name = "./PaxHeaders", .type = 'x'};
    add_octal(extended.mode, sizeof extended.mode, 0644);
    add_octal(extended.size, sizeof extended.size, records.length);
    add_block(one, &extended);
    text_add(&one->out, records.data, records.length);
    add_padding(one, records.length);
  }
  text_free(&records);
  // Fields need no NUL when they are full.
  memcpy(header.name, name, strnlen(name, sizeof header.name));
  memcpy(header.target, target, strnlen(target, sizeof header.target));
  add_octal(header.mode, sizeof header.mode, found->st_mode & 07777);
  add_octal(header.uid, sizeof header.uid, found->st_uid > TAR_ID_MAX ? 0 : found->st_uid);
  add_octal(header.gid, sizeof header.gid, found->st_gid > TAR_ID_MAX ? 0 : found->st_gid);
  add_octal(header.size, sizeof header.size, size > TAR_SIZE_MAX ? 0 : size);
  add_octal(header.mtime, sizeof header.mtime, found->st_mtime < 0 ? 0 : (uint64_t)found->st_mtime);
  if (type == '3' || type == '4') {
    add_octal(header.major, sizeof header.major, major(found->st_rdev));
    add_octal(header.minor, sizeof header.minor, minor(found->st_rdev));
  }
  header.type = type;
  add_block(one, &header);
}

static void push(struct pack* one, DIR* dir, char* name) {
  struct level* level = malloc(sizeof *level);
  if (!level) abort();
  *level = (struct level){dir, name, one->level};
  one->level = level;
}

static void pop(struct pack* one) {
  struct level* level = one->level;
  one->level = level->above;
  closedir(level->dir);
  free(level->name);
  free(level);
}

static void add_file(struct pack* one, int fd, const char* name) {
  struct stat found;
  if (fstat(fd, &found) < 0) {
    close(fd);
    return;
  }
  add_header(one, name, "", '0', &found);
  one->fd = fd;
  one->left = (uint64_t)found.st_size;
  one->padding = (size_t)(one->left % TAR_BLOCK);
}

static void add_directory(struct pack* one, int parent, const char* entry, char* name) {
  int fd = openat(parent, entry, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  struct stat found;
  DIR* dir = fd < 0 || fstat(fd, &found) < 0 ? NULL : fdopendir(fd);
  if (!dir) {
    if (fd >= 0) close(fd);
    free(name);
    return;
  }
  add_header(one, name, "", '5', &found);
  push(one, dir, name);
}

// The next thing in the directory that is being read. What has gone since is left out, and so are sockets.
static void add_next(struct pack* one) {
  struct level* level = one->level;
  struct dirent* entry = readdir(level->dir);
  if (!entry) {
    pop(one);
    return;
  }
  struct stat found;
  int dir = dirfd(level->dir);
  char* name;
  if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) return;
  if (fstatat(dir, entry->d_name, &found, AT_SYMLINK_NOFOLLOW) < 0) return;
  bool is_dir = S_ISDIR(found.st_mode);
  if (asprintf(&name, "%s%s%s", level->name, entry->d_name, is_dir ? "/" : "") < 0) abort();
  if (is_dir) {
    add_directory(one, dir, entry->d_name, name);
    return;
  }
  if (S_ISREG(found.st_mode)) {
    int fd = openat(dir, entry->d_name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) add_file(one, fd, name);
  } else if (S_ISLNK(found.st_mode)) {
    char target[4096];
    ssize_t length = readlinkat(dir, entry->d_name, target, sizeof target - 1);
    if (length >= 0) {
      target[length] = 0;
      add_header(one, name, target, '2', &found);
    }
  } else if (!S_ISSOCK(found.st_mode)) {
    add_header(one, name, "", S_ISCHR(found.st_mode) ? '3' : S_ISBLK(found.st_mode) ? '4' : '6', &found);
  }
  free(name);
}

// As much as the header said: a file that is written to meanwhile is cut, one that was cut is filled up.
static void add_content(struct pack* one) {
  static char data[CHUNK];
  size_t wanted = one->left < CHUNK ? (size_t)one->left : CHUNK;
  ssize_t got = wanted > 0 ? read(one->fd, data, wanted) : 0;
  if (wanted > 0 && got <= 0) {
    memset(data, 0, wanted);
    got = (ssize_t)wanted;
  }
  text_add(&one->out, data, (size_t)got);
  one->left -= (uint64_t)got;
  if (one->left > 0) return;
  add_padding(one, one->padding);
  close(one->fd);
  one->fd = -1;
}

static bool step(struct stream* stream) {
  struct pack* one = (struct pack*)stream;
  while (one->out.length - one->sent < CHUNK && !one->ended) {
    if (one->fd >= 0) {
      add_content(one);
    } else if (one->level) {
      add_next(one);
    } else {
      static const char last[2 * TAR_BLOCK];
      text_add(&one->out, last, sizeof last);
      one->ended = true;
    }
  }
  if (stream->credit <= 0) return false;
  size_t length = one->out.length - one->sent;
  if (length > CHUNK) length = CHUNK;
  if ((int64_t)length > stream->credit) length = (size_t)stream->credit;
  if (length > 0) stream_data(stream, FROM_GUEST, one->out.data + one->sent, length);
  one->sent += length;
  if (one->sent == one->out.length) {
    one->sent = one->out.length = 0;
    if (one->ended) stream_finish(stream, "{\"exit_code\": 0}");
  } else if (one->sent >= CHUNK) {
    memmove(one->out.data, one->out.data + one->sent, one->out.length - one->sent);
    one->out.length -= one->sent;
    one->sent = 0;
  }
  return !stream->finished;
}

static void on_data(struct stream* stream, const char* data, size_t length) {
  (void)stream, (void)data, (void)length;
}

static void on_nothing(struct stream* stream) {
  (void)stream;
}

static void on_close(struct stream* stream) {
  stream_fail(stream, "Gone: the host has ended the transfer");
}

static void on_free(struct stream* stream) {
  struct pack* one = (struct pack*)stream;
  while (one->level) pop(one);
  if (one->fd >= 0) close(one->fd);
  text_free(&one->out);
  free(one);
}

static const struct stream_kind kind = {.data = on_data,
                                        .end = on_nothing,
                                        .credit = on_nothing,
                                        .close = on_close,
                                        .step = step,
                                        .free = on_free};

void pack_start(struct caller caller, const struct json* request) {
  const char* path;
  struct stat named, found;
  if (!path_of(caller, request, &path)) return;
  struct pack* one = calloc(1, sizeof *one);
  if (!one || !stream_open(&one->stream, &kind, caller, request)) {
    free(one);
    return;
  }
  one->fd = -1;
  // A link to a directory is that directory here: it was named itself.
  int fd = lstat(path, &named) < 0 ? -1 : open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0 || fstat(fd, &found) < 0) {
    stream_fail_errno(&one->stream, errno, path);
    if (fd >= 0) close(fd);
    return;
  }
  struct text facts = {0};
  file_facts(&facts, base_name(path), &named);
  stream_opened(&one->stream, facts.data, facts.length);
  text_free(&facts);
  if (S_ISDIR(found.st_mode)) {
    add_directory(one, fd, ".", strdup("./"));
    close(fd);
  } else {
    add_file(one, fd, base_name(path));
  }
}
