// Changes of files, told as they happen: inotify(7), one line of JSON for each.
//
// What the host has no room for waits here, then in the kernel's queue; when that is full, the host is told
// that it has missed something. The Python agent does the same (forkd_agent/watch.py).
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"

#define WANTED                                                                                    \
  (IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | \
   IN_DELETE_SELF | IN_MOVE_SELF | IN_EXCL_UNLINK)
// The halves of a move are queued one after the other, by the same thread, which may be interrupted between
// them.
#define PAIR_SECONDS 0.05

struct watched {
  int number;
  char* path;
  struct watched* next;
};

struct file_watch {
  struct stream stream;
  struct watch watch;
  int fd;
  bool waits, is_dir, recursive, ending;
  char* root;
  int root_number;
  struct watched* paths;
  // A name that something was moved away from: where to comes next, if it is in sight.
  char* moved;
  uint32_t cookie;
  bool moved_is_dir;
  double deadline;
  // Lines to be sent; where the last of them begins.
  struct text out;
  size_t sent, last;
  struct file_watch* next;
};

static struct file_watch* watches;

static char* joined(const char* folder, const char* name) {
  char* path;
  if (asprintf(&path, "%s/%s", strcmp(folder, "/") == 0 ? "" : folder, name) < 0) abort();
  return path;
}

static void tell(struct file_watch* one, const char* event, const char* path, bool is_dir, const char* from) {
  struct text line = {0};
  text_addf(&line, "{\"event\": \"%s\", \"path\": ", event);
  json_quote_name(&line, path);
  text_addf(&line, ", \"is_dir\": %s", is_dir ? "true" : "false");
  if (from) {
    text_add(&line, ", \"from\": ", 10);
    json_quote_name(&line, from);
  }
  text_add(&line, "}\n", 2);
  // A program that writes in small pieces is told of once, until something else happens.
  bool is_again = one->out.length - one->last == line.length && one->last >= one->sent &&
                  one->out.length > 0 && memcmp(one->out.data + one->last, line.data, line.length) == 0;
  if (!is_again) {
    one->last = one->out.length;
    text_add(&one->out, line.data, line.length);
  }
  text_free(&line);
}

// 0, or an errno.
static int add(struct file_watch* one, const char* path, uint32_t flags) {
  int number = inotify_add_watch(one->fd, path, WANTED | flags);
  if (number < 0) return errno;
  struct watched* watched = one->paths;
  while (watched && watched->number != number) watched = watched->next;
  if (!watched) {
    watched = calloc(1, sizeof *watched);
    if (!watched) abort();
    watched->next = one->paths;
    one->paths = watched;
  }
  free(watched->path);
  watched->number = number;
  watched->path = strdup(path);
  return 0;
}

// Every directory in it. What was in a new one before it was watched is told as created; it may be told
// twice.
static int add_below(struct file_watch* one, const char* top, bool told) {
  DIR* dir = opendir(top);
  int problem = 0;
  if (!dir) return 0;
  for (struct dirent* entry; !problem && (entry = readdir(dir));) {
    struct stat found;
    if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0) continue;
    if (fstatat(dirfd(dir), entry->d_name, &found, AT_SYMLINK_NOFOLLOW) < 0) continue;
    char* path = joined(top, entry->d_name);
    bool is_dir = S_ISDIR(found.st_mode);
    if (told) tell(one, "created", path, is_dir, NULL);
    if (is_dir) problem = add(one, path, IN_ONLYDIR | IN_DONT_FOLLOW);
    // Gone since.
    if (problem == ENOENT || problem == ENOTDIR) problem = 0;
    if (is_dir && !problem) problem = add_below(one, path, told);
    free(path);
  }
  closedir(dir);
  return problem;
}

static bool is_below(const char* path, const char* top) {
  size_t length = strlen(top);
  return strncmp(path, top, length) == 0 && (path[length] == 0 || path[length] == '/');
}

static void moved_to(struct file_watch* one, const char* path, bool is_dir) {
  tell(one, "moved", path, is_dir, one->moved);
  for (struct watched* each = one->paths; each; each = each->next) {
    char* renamed;
    if (!is_below(each->path, one->moved)) continue;
    if (asprintf(&renamed, "%s%s", path, each->path + strlen(one->moved)) < 0) abort();
    free(each->path);
    each->path = renamed;
  }
  free(one->moved);
  one->moved = NULL;
}

// Out of sight.
static void moved_away(struct file_watch* one) {
  if (!one->moved) return;
  tell(one, "deleted", one->moved, one->moved_is_dir, NULL);
  for (struct watched* each = one->paths; each; each = each->next)
    if (is_below(each->path, one->moved)) inotify_rm_watch(one->fd, each->number);
  free(one->moved);
  one->moved = NULL;
}

static void remove_watched(struct file_watch* one, struct watched* gone) {
  struct watched** link = &one->paths;
  while (*link != gone) link = &(*link)->next;
  *link = gone->next;
  free(gone->path);
  free(gone);
}

static void came(struct file_watch* one, const char* path, bool is_dir) {
  tell(one, "created", path, is_dir, NULL);
  if (!is_dir || !one->recursive) return;
  int problem = add(one, path, IN_ONLYDIR | IN_DONT_FOLLOW);
  if (!problem) problem = add_below(one, path, true);
  // No more directories can be watched.
  if (problem && problem != ENOENT && problem != ENOTDIR) tell(one, "overflow", one->root, one->is_dir, NULL);
}

static void changed(struct file_watch* one, const char* path, uint32_t mask) {
  static const struct {
    uint32_t bit;
    const char* event;
  } names[] = {{IN_MODIFY, "modified"},
               {IN_CLOSE_WRITE, "written"},
               {IN_DELETE, "deleted"},
               {IN_ATTRIB, "attributes"}};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (mask & names[i].bit) tell(one, names[i].event, path, mask & IN_ISDIR, NULL);
}

static void on_event(struct file_watch* one, const struct inotify_event* event) {
  uint32_t mask = event->mask;
  if (mask & IN_Q_OVERFLOW) {
    tell(one, "overflow", one->root, one->is_dir, NULL);
    return;
  }
  struct watched* watched = one->paths;
  while (watched && watched->number != event->wd) watched = watched->next;
  if (!watched) return;
  char* path = event->len > 0 && event->name[0] ? joined(watched->path, event->name) : strdup(watched->path);
  if (mask & IN_MOVED_TO && one->moved && one->cookie == event->cookie) {
    moved_to(one, path, mask & IN_ISDIR);
  } else {
    moved_away(one);
    if (mask & IN_IGNORED) {
      one->ending = one->ending || event->wd == one->root_number;
      remove_watched(one, watched);
    } else if (mask & (IN_DELETE_SELF | IN_MOVE_SELF)) {
      // Of what is below, the directory above tells.
      if (event->wd == one->root_number) {
        tell(one, "deleted", path, one->is_dir, NULL);
        one->ending = true;
      }
    } else if (mask & IN_MOVED_FROM) {
      one->moved = strdup(path);
      one->cookie = event->cookie;
      one->moved_is_dir = mask & IN_ISDIR;
      one->deadline = now() + PAIR_SECONDS;
    } else if (mask & (IN_CREATE | IN_MOVED_TO)) {
      came(one, path, mask & IN_ISDIR);
    } else {
      changed(one, path, mask);
    }
  }
  free(path);
}

static void wait_for(struct file_watch* one, bool wanted) {
  if (one->fd < 0 || one->waits == wanted) return;
  one->waits = wanted;
  if (wanted)
    watch_add(one->fd, EPOLLIN, &one->watch);
  else
    watch_remove(one->fd);
}

static void release(struct file_watch* one) {
  if (one->fd < 0) return;
  wait_for(one, false);
  close(one->fd);
  one->fd = -1;
}

static void flush(struct file_watch* one) {
  struct stream* stream = &one->stream;
  if (stream->finished) return;
  while (one->sent < one->out.length && stream->credit > 0) {
    size_t length = one->out.length - one->sent;
    if (length > CHUNK) length = CHUNK;
    if ((int64_t)length > stream->credit) length = (size_t)stream->credit;
    stream_data(stream, FROM_GUEST, one->out.data + one->sent, length);
    one->sent += length;
  }
  bool is_full = one->sent < one->out.length;
  if (!is_full) one->out.length = one->sent = one->last = 0;
  if (!is_full && one->ending) {
    release(one);
    stream_finish(stream, "{\"exit_code\": 0}");
    return;
  }
  wait_for(one, !is_full);
}

static void on_ready(struct watch* watch, uint32_t events) {
  struct file_watch* one = (struct file_watch*)((char*)watch - offsetof(struct file_watch, watch));
  char data[65536] __attribute__((aligned(__alignof__(struct inotify_event))));
  (void)events;
  ssize_t got = read(one->fd, data, sizeof data);
  for (char* at = data; at < data + got;) {
    const struct inotify_event* event = (const struct inotify_event*)at;
    on_event(one, event);
    at += sizeof *event + event->len;
  }
  flush(one);
}

static void on_data(struct stream* stream, const char* data, size_t length) {
  (void)stream, (void)data, (void)length;
}

static void on_end(struct stream* stream) {
  (void)stream;
}

static void on_credit(struct stream* stream) {
  flush((struct file_watch*)stream);
}

static void on_close(struct stream* stream) {
  release((struct file_watch*)stream);
  stream_finish(stream, "{\"exit_code\": 0}");
}

static void on_free(struct stream* stream) {
  struct file_watch* one = (struct file_watch*)stream;
  struct file_watch** link = &watches;
  while (*link && *link != one) link = &(*link)->next;
  if (*link) *link = one->next;
  release(one);
  while (one->paths) remove_watched(one, one->paths);
  text_free(&one->out);
  free(one->moved);
  free(one->root);
  free(one);
}

static const struct stream_kind kind = {
    .data = on_data, .end = on_end, .credit = on_credit, .close = on_close, .free = on_free};

static int begin(struct file_watch* one) {
  int problem = one->fd < 0 ? errno : add(one, one->root, 0);
  if (problem) return problem;
  one->root_number = one->paths->number;
  return one->recursive && one->is_dir ? add_below(one, one->root, false) : 0;
}

void watch_start(struct caller caller, const struct json* request) {
  const char* path;
  struct stat found;
  const struct json* recursive = json_get(request, "recursive");
  if (!path_of(caller, request, &path)) return;
  struct file_watch* one = calloc(1, sizeof *one);
  if (!one || !stream_open(&one->stream, &kind, caller, request)) {
    free(one);
    return;
  }
  one->watch.ready = on_ready;
  one->fd = -1;
  one->root = strdup(path);
  for (size_t length = strlen(one->root); length > 1 && one->root[length - 1] == '/'; length--)
    one->root[length - 1] = 0;
  one->recursive = recursive && recursive->kind == JSON_TRUE;
  int problem = stat(path, &found) < 0 ? errno : 0;
  if (!problem) {
    one->is_dir = S_ISDIR(found.st_mode);
    one->fd = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    problem = begin(one);
  }
  if (problem) {
    release(one);
    stream_fail_errno(&one->stream, problem, path);
    return;
  }
  one->next = watches;
  watches = one;
  struct text facts = {0};
  file_facts(&facts, one->root[1] ? base_name(one->root) : "/", &found);
  stream_opened(&one->stream, facts.data, facts.length);
  text_free(&facts);
  flush(one);
}

double watch_wait(void) {
  double first = -1;
  for (const struct file_watch* one = watches; one; one = one->next)
    if (one->moved && (first < 0 || one->deadline < first)) first = one->deadline;
  if (first < 0) return -1;
  double left = first - now();
  return left > 0 ? left : 0;
}

void watch_tick(void) {
  for (struct file_watch* one = watches; one; one = one->next) {
    if (!one->moved || now() < one->deadline || one->fd < 0) continue;
    moved_away(one);
    flush(one);
  }
}
