// /etc/forkd/image.conf, one word and a value a line: env NAME=VALUE, cwd PATH, uid N, gid N, groups N N. In
// a value \\ and \n stand for a backslash and a line break. The Python agent reads the same
// (forkd_agent/image.py).
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"

#define PATH "/etc/forkd/image.conf"

struct config config = {.cwd = "/"};
extern char** environ;

char** env_set(char** env, const char* pair) {
  size_t count = 0, name = strcspn(pair, "=") + 1;
  for (; env && env[count]; count++) {
    if (strncmp(env[count], pair, name) != 0) continue;
    env[count] = strdup(pair);
    return env;
  }
  env = realloc(env, (count + 2) * sizeof *env);
  if (!env) abort();
  env[count] = strdup(pair);
  env[count + 1] = NULL;
  return env;
}

static void unescape(char* value) {
  char* to = value;
  for (const char* from = value; *from; from++) {
    if (*from == '\\' && from[1]) {
      from++;
      *to++ = *from == 'n' ? '\n' : *from;
    } else {
      *to++ = *from;
    }
  }
  *to = 0;
}

static void read_groups(char* value) {
  char* end = value;
  for (;;) {
    gid_t group = (gid_t)strtoul(value, &end, 10);
    if (end == value) return;
    struct user* user = &config.user;
    user->groups = realloc(user->groups, (user->group_count + 1) * sizeof *user->groups);
    if (!user->groups) abort();
    user->groups[user->group_count++] = group;
    value = end;
  }
}

static void read_line(char* line) {
  char* space = strchr(line, ' ');
  if (!space) return;
  *space = 0;
  char* value = space + 1;
  unescape(value);
  if (strcmp(line, "env") == 0) {
    config.env = env_set(config.env, value);
  } else if (strcmp(line, "cwd") == 0) {
    config.cwd = strdup(value);
  } else if (strcmp(line, "uid") == 0) {
    config.user.uid = (uid_t)strtoul(value, NULL, 10);
    config.user.is_set = true;
  } else if (strcmp(line, "gid") == 0) {
    config.user.gid = (gid_t)strtoul(value, NULL, 10);
  } else if (strcmp(line, "groups") == 0) {
    read_groups(value);
  }
}

void config_read(void) {
  for (char** pair = environ; *pair; pair++) config.env = env_set(config.env, *pair);
  struct text text = {0};
  char data[4096];
  int fd = open(PATH, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  for (ssize_t got; (got = read(fd, data, sizeof data)) > 0;) text_add(&text, data, (size_t)got);
  close(fd);
  for (char *line = text.data, *rest; line && *line; line = rest) {
    rest = strchr(line, '\n');
    if (rest) *rest++ = 0;
    read_line(line);
  }
  text_free(&text);
}
