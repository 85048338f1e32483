// Who a program runs as: NAME, UID, NAME:GROUP or UID:GID, as container tools write it. The files are read
// here: a static program cannot load what libc would ask.
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

static char* read_whole(const char* path) {
  struct text text = {0};
  char data[4096];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return NULL;
  text_add(&text, "", 0);
  for (ssize_t got; (got = read(fd, data, sizeof data)) > 0;) text_add(&text, data, (size_t)got);
  close(fd);
  return text.data;
}

// Cuts a line at its colons; the fields that it does not have are empty.
static void split(char* line, char** fields, size_t count) {
  for (size_t i = 0; i < count; i++) {
    fields[i] = line;
    line += strcspn(line, ":");
    if (*line) *line++ = 0;
  }
}

static char* next_line(char** rest) {
  char* line = *rest;
  if (!line || !*line) return NULL;
  char* newline = strchr(line, '\n');
  if (newline) *newline = 0;
  *rest = newline ? newline + 1 : NULL;
  return line;
}

static bool is_number(const char* text) {
  return *text && strspn(text, "0123456789") == strlen(text);
}

static void copy(char* to, size_t room, const char* from) {
  strncpy(to, from, room - 1);
  to[room - 1] = 0;
}

static bool find_user(const char* name, struct user* user) {
  char *text = read_whole("/etc/passwd"), *rest = text, *fields[7];
  bool found = false;
  for (char* line; !found && (line = next_line(&rest));) {
    split(line, fields, 7);
    if (strcmp(is_number(name) ? fields[2] : fields[0], name) != 0) continue;
    found = true;
    copy(user->name, sizeof user->name, fields[0]);
    copy(user->home, sizeof user->home, fields[5]);
    user->uid = (uid_t)strtoul(fields[2], NULL, 10);
    user->gid = (gid_t)strtoul(fields[3], NULL, 10);
  }
  free(text);
  return found;
}

static bool find_group(const char* name, gid_t* gid) {
  char *text = read_whole("/etc/group"), *rest = text, *fields[4];
  bool found = false;
  for (char* line; !found && (line = next_line(&rest));) {
    split(line, fields, 4);
    found = strcmp(fields[0], name) == 0;
    if (found) *gid = (gid_t)strtoul(fields[2], NULL, 10);
  }
  free(text);
  return found;
}

static void add_group(struct user* user, gid_t gid) {
  user->groups = realloc(user->groups, (user->group_count + 1) * sizeof *user->groups);
  if (!user->groups) abort();
  user->groups[user->group_count++] = gid;
}

static bool has_member(char* members, const char* name) {
  size_t length = strlen(name);
  for (char* at = members; *at; at += strcspn(at, ","), at += *at == ',')
    if (strcspn(at, ",") == length && strncmp(at, name, length) == 0) return true;
  return false;
}

static void add_groups_of(struct user* user) {
  char *text = read_whole("/etc/group"), *rest = text, *fields[4];
  for (char* line; (line = next_line(&rest));) {
    split(line, fields, 4);
    gid_t gid = (gid_t)strtoul(fields[2], NULL, 10);
    if (gid != user->gid && has_member(fields[3], user->name)) add_group(user, gid);
  }
  free(text);
}

const char* user_of(const char* given, struct user* user) {
  static char reason[160];
  char name[128];
  if (!given || !*given || *given == ':' || strlen(given) >= sizeof name)
    return "ValueError: that is no user";
  copy(name, sizeof name, given);
  char* group = strchr(name, ':');
  if (group) *group++ = 0;
  *user = (struct user){.is_set = true};
  bool found = find_user(name, user);
  if (!found && !is_number(name)) {
    snprintf(reason, sizeof reason, "LookupError: the guest has no user '%.64s'", name);
    return reason;
  }
  if (!found) user->uid = (uid_t)strtoul(name, NULL, 10);
  if (group && *group) {
    if (is_number(group)) {
      user->gid = (gid_t)strtoul(group, NULL, 10);
    } else if (!find_group(group, &user->gid)) {
      snprintf(reason, sizeof reason, "LookupError: the guest has no group '%.64s'", group);
      return reason;
    }
  }
  add_group(user, user->gid);
  if (found && !(group && *group)) add_groups_of(user);
  return NULL;
}
