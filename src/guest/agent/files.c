// What is asked about files without moving them: stat, list, remove, make_dir.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

// Entries of one directory in one answer.
#define LIST_MAX 100000

bool path_of(struct caller caller, const struct json* request, const char** path) {
  *path = json_text(request, "path");
  if (*path && **path == '/') return true;
  answer_error(caller, "ValueError: path must be absolute");
  return false;
}

const char* base_name(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

static const char* kind_of(mode_t mode) {
  return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "dir" : S_ISLNK(mode) ? "link" : "other";
}

// Without the closing brace.
static void add_facts(struct text* text, const char* name, const struct stat* found) {
  text_add(text, "{\"name\": ", 9);
  json_quote_name(text, name);
  text_addf(text,
            ", \"type\": \"%s\", \"size\": %lld, \"mode\": %u, \"uid\": %u, \"gid\": %u, \"mtime_unix\": "
            "%lld.%09ld",
            kind_of(found->st_mode), (long long)found->st_size, found->st_mode & 07777, found->st_uid,
            found->st_gid, (long long)found->st_mtim.tv_sec, found->st_mtim.tv_nsec);
}

void file_facts(struct text* text, const char* name, const struct stat* found) {
  add_facts(text, name, found);
  text_add(text, "}", 1);
}

static void add_target(struct text* text, int dir, const char* path) {
  char target[4096];
  ssize_t length = readlinkat(dir, path, target, sizeof target - 1);
  if (length < 0) return;
  target[length] = 0;
  text_add(text, ", \"target\": ", 12);
  json_quote_name(text, target);
}

int file_mode(const struct json* request, int otherwise) {
  const struct json* mode = json_get(request, "mode");
  if (!mode || mode->kind == JSON_NULL) return otherwise;
  return mode->kind == JSON_NUMBER && mode->number >= 0 && mode->number <= 07777 ? (int)mode->number : -1;
}

int make_dirs(const char* path, mode_t mode) {
  char* part = strdup(path);
  int problem = 0;
  if (!part) return ENOMEM;
  for (char* slash = part + 1; !problem && *slash; slash++) {
    if (*slash != '/') continue;
    *slash = 0;
    if (mkdir(part, 0777) < 0 && errno != EEXIST) problem = errno;
    *slash = '/';
  }
  struct stat found;
  if (!problem && mkdir(part, mode) < 0)
    problem = errno == EEXIST && stat(part, &found) == 0 && S_ISDIR(found.st_mode) ? 0 : errno;
  free(part);
  return problem;
}

int make_parents(const char* path) {
  char* parent = strdup(path);
  if (!parent) return ENOMEM;
  char* slash = strrchr(parent, '/');
  int problem = 0;
  if (slash && slash != parent) {
    *slash = 0;
    problem = make_dirs(parent, 0777);
  }
  free(parent);
  return problem;
}

bool write_whole(int fd, const char* data, size_t length) {
  while (length > 0) {
    ssize_t written = write(fd, data, length);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    data += written;
    length -= (size_t)written;
  }
  return true;
}

// 0, or an errno; then the text is not used.
static int stat_one(struct text* body, const char* path) {
  struct stat found, there;
  char* plain = strdup(path);
  if (!plain) return ENOMEM;
  for (size_t length = strlen(plain); length > 1 && plain[length - 1] == '/'; length--) plain[length - 1] = 0;
  int problem = lstat(path, &found) < 0 ? errno : 0;
  if (!problem) {
    text_add(body, "{\"entry\": ", 10);
    add_facts(body, plain[1] ? base_name(plain) : "/", &found);
    if (S_ISLNK(found.st_mode)) {
      add_target(body, AT_FDCWD, path);
      if (stat(path, &there) == 0)
        text_addf(body, ", \"leads_to\": \"%s\"", kind_of(there.st_mode));
      else
        text_add(body, ", \"leads_to\": null", 18);
    }
    text_add(body, "}, \"exit_code\": 0}", 18);
  }
  free(plain);
  return problem;
}

static int by_name(const void* a, const void* b) {
  return strcmp(*(char* const*)a, *(char* const*)b);
}

static void add_entry(struct text* body, int dir, const char* name, bool is_first) {
  struct stat found;
  // It may have gone since.
  if (fstatat(dir, name, &found, AT_SYMLINK_NOFOLLOW) < 0) return;
  if (!is_first) text_add(body, ", ", 2);
  add_facts(body, name, &found);
  if (S_ISLNK(found.st_mode)) add_target(body, dir, name);
  text_add(body, "}", 1);
}

static int list_dir(struct text* body, const char* path) {
  DIR* dir = opendir(path);
  if (!dir) return errno;
  char** names = NULL;
  size_t count = 0, capacity = 0;
  bool truncated = false;
  for (struct dirent* entry; (entry = readdir(dir));) {
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    truncated = count == LIST_MAX;
    if (truncated) break;
    if (count == capacity) {
      capacity = capacity * 2 + 64;
      names = realloc(names, capacity * sizeof *names);
      if (!names) abort();
    }
    names[count++] = strdup(entry->d_name);
  }
  if (count > 0) qsort(names, count, sizeof *names, by_name);
  text_add(body, "{\"entries\": [", 13);
  size_t empty = body->length;
  for (size_t i = 0; i < count; i++) {
    add_entry(body, dirfd(dir), names[i], body->length == empty);
    free(names[i]);
  }
  text_addf(body, "]%s, \"exit_code\": 0}", truncated ? ", \"truncated\": true" : "");
  free(names);
  closedir(dir);
  return 0;
}

static int remove_each(const char* path, const struct stat* found, int type, struct FTW* place) {
  (void)found, (void)type, (void)place;
  return remove(path);
}

static bool is_true(const struct json* request, const char* name) {
  const struct json* value = json_get(request, name);
  return value && value->kind == JSON_TRUE;
}

static int remove_one(const char* path, bool recursive) {
  struct stat found;
  if (lstat(path, &found) < 0) return errno;
  int result = !S_ISDIR(found.st_mode) ? unlink(path)
               : recursive             ? nftw(path, remove_each, 32, FTW_DEPTH | FTW_PHYS)
                                       : rmdir(path);
  return result == 0 ? 0 : errno;
}

bool files_answer(struct caller caller, const char* action, const struct json* request) {
  const char* path;
  struct text body = {0};
  int problem = 0;
  bool is_stat = strcmp(action, "stat") == 0, is_list = strcmp(action, "list") == 0;
  bool is_remove = strcmp(action, "remove") == 0;
  if (!is_stat && !is_list && !is_remove && strcmp(action, "make_dir") != 0) return false;
  if (!path_of(caller, request, &path)) return true;
  if (is_stat) {
    problem = stat_one(&body, path);
  } else if (is_list) {
    problem = list_dir(&body, path);
  } else if (is_remove) {
    problem = remove_one(path, is_true(request, "recursive"));
  } else {
    int mode = file_mode(request, 0755);
    if (mode < 0) {
      answer_error(caller, "ValueError: mode must be a whole number from 0 to 4095");
      return true;
    }
    if (is_true(request, "parents"))
      problem = make_dirs(path, (mode_t)mode);
    else
      problem = mkdir(path, (mode_t)mode) < 0 ? errno : 0;
  }
  if (!problem && !is_stat && !is_list) text_add(&body, "{\"exit_code\": 0}", 16);
  if (problem)
    answer_errno(caller, problem, path);
  else
    answer(caller, body.data, body.length);
  text_free(&body);
  return true;
}
