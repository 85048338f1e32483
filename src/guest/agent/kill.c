// Ends a program with its process group, its session, its descendants, and whatever still carries its mark.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

struct process {
  pid_t pid, parent, group, session;
  char state;
};

static bool read_process(pid_t pid, struct process* process) {
  char path[64], stat[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t got = read(fd, stat, sizeof stat - 1);
  close(fd);
  if (got <= 0) return false;
  stat[got] = 0;
  // A command's name may hold anything, a parenthesis too.
  char* after = strrchr(stat, ')');
  process->pid = pid;
  return after && sscanf(after + 1, " %c %d %d %d", &process->state, &process->parent, &process->group,
                         &process->session) == 4;
}

static bool has_mark(pid_t pid, uint64_t ident) {
  char path[64], mark[64], data[4096];
  struct text environment = {0};
  snprintf(path, sizeof path, "/proc/%d/environ", pid);
  int length = snprintf(mark, sizeof mark, "FORKD_EXEC_ID=%llu", (unsigned long long)ident) + 1;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  for (ssize_t got; (got = read(fd, data, sizeof data)) > 0;) text_add(&environment, data, (size_t)got);
  close(fd);
  bool found = environment.data && memmem(environment.data, environment.length + 1, mark, (size_t)length);
  text_free(&environment);
  return found;
}

static size_t list_processes(struct process** list) {
  size_t count = 0, capacity = 0;
  DIR* dir = opendir("/proc");
  if (!dir) return 0;
  for (struct dirent* entry; (entry = readdir(dir));) {
    pid_t pid = (pid_t)atoi(entry->d_name);
    if (pid <= 1) continue;
    if (count == capacity) {
      capacity = capacity * 2 + 64;
      *list = realloc(*list, capacity * sizeof **list);
      if (!*list) abort();
    }
    if (read_process(pid, *list + count)) count++;
  }
  closedir(dir);
  return count;
}

static bool descends(const struct process* list, size_t count, const struct process* one, pid_t leader) {
  pid_t parent = one->parent;
  for (size_t depth = 0; parent > 1 && depth < count; depth++) {
    if (parent == leader) return true;
    size_t i = 0;
    while (i < count && list[i].pid != parent) i++;
    if (i == count) return false;
    parent = list[i].parent;
  }
  return false;
}

// Once through the list; how many were killed.
static size_t kill_once(pid_t leader, uint64_t ident) {
  struct process* list = NULL;
  size_t killed = 0, count = list_processes(&list);
  kill(-leader, SIGKILL);
  for (size_t i = 0; i < count; i++) {
    const struct process* one = &list[i];
    if (one->state == 'Z' || one->pid == leader) continue;
    if (one->group != leader && one->session != leader && !descends(list, count, one, leader) &&
        !has_mark(one->pid, ident))
      continue;
    kill(one->pid, SIGKILL);
    killed++;
  }
  free(list);
  return killed;
}

// A process may fork while the list is read.
void kill_tree(pid_t leader, uint64_t ident) {
  for (int round = 0; round < 5 && kill_once(leader, ident) > 0; round++)
    ;
}
