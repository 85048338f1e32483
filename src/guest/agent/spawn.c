// Starting programs: where they are found, as whom and on which terminal they run, and why they could not.
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

static uint64_t idents;

uint64_t new_ident(void) {
  return ++idents;
}

static const char* env_get(char** env, const char* name) {
  size_t length = strlen(name);
  for (; env && *env; env++)
    if (strncmp(*env, name, length) == 0 && (*env)[length] == '=') return *env + length + 1;
  return NULL;
}

// Returns only when it fails, with the errno that says most.
static int exec_in_path(char** args, char** env) {
  if (strchr(args[0], '/')) {
    execve(args[0], args, env);
    return errno;
  }
  const char* path = env_get(env, "PATH");
  int reason = ENOENT;
  if (!path) path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  for (size_t length;; path += length + 1) {
    char file[4352];
    length = strcspn(path, ":");
    snprintf(file, sizeof file, "%.*s/%s", (int)(length < 4000 ? length : 4000), length ? path : ".",
             args[0]);
    execve(file, args, env);
    if (errno != ENOENT && errno != ENOTDIR) reason = errno;
    if (!path[length]) return reason;
  }
}

static void become(const struct spawn* spawn, int report) {
  struct failure failure = {0, STAGE_USER};
  const struct user* user = &spawn->user;
  sigset_t none;
  sigemptyset(&none);
  for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setsid();
  for (int i = 0; i < 3; i++)
    if (dup2(spawn->fds[i], i) < 0) _exit(127);
  if (spawn->has_terminal) ioctl(0, TIOCSCTTY, 0);
  if (user->is_set &&
      (setgroups(user->group_count, user->groups) < 0 || setgid(user->gid) < 0 || setuid(user->uid) < 0)) {
    failure.number = errno;
  } else if (chdir(spawn->cwd) < 0) {
    failure = (struct failure){errno, STAGE_CWD};
  } else {
    failure = (struct failure){exec_in_path(spawn->args, spawn->env), STAGE_EXEC};
  }
  if (write(report, &failure, sizeof failure) < 0) _exit(126);
  _exit(127);
}

pid_t spawn_program(const struct spawn* spawn, struct failure* failure) {
  int report[2];
  *failure = (struct failure){0, STAGE_EXEC};
  if (pipe2(report, O_CLOEXEC) < 0) {
    failure->number = errno;
    return -1;
  }
  pid_t pid = fork();
  if (pid == 0) become(spawn, report[1]);
  failure->number = pid < 0 ? errno : 0;
  close(report[1]);
  if (pid > 0 && read(report[0], failure, sizeof *failure) == (ssize_t)sizeof *failure) {
    waitpid(pid, NULL, 0);
    pid = -1;
  }
  close(report[0]);
  return pid;
}

int run_program(const char* path, char** env, double seconds) {
  char* args[] = {(char*)path, NULL};
  struct failure failure;
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  struct spawn spawn = {.args = args, .env = env, .cwd = "/", .fds = {null, 2, 2}};
  pid_t pid = spawn_program(&spawn, &failure);
  close(null);
  if (pid < 0) return -1;
  int status;
  for (double end = now() + seconds; waitpid(pid, &status, WNOHANG) == 0; usleep(2000)) {
    if (now() < end) continue;
    kill(-pid, SIGKILL);
    kill(pid, SIGKILL);
    waitpid(pid, &status, 0);
    return -1;
  }
  return status;
}

void answer_spawn_failure(struct caller caller, struct failure failure, const struct spawn* spawn) {
  const char* what = failure.stage == STAGE_CWD    ? spawn->cwd
                     : failure.stage == STAGE_USER ? "user"
                                                   : spawn->args[0];
  answer_errno(caller, failure.number, what);
}

// A list that ends in a null and points into the request; null when it is none, with the reason.
static char** read_args(const struct json* request, const char** reason) {
  const struct json* given = json_get(request, "args");
  *reason = "KeyError: 'args'";
  if (!given) return NULL;
  *reason = "TypeError: args must be a list of texts";
  size_t count = 0;
  if (given->kind == JSON_STRING) {
    char** args = calloc(2, sizeof *args);
    if (args) args[0] = given->string;
    return args;
  }
  if (given->kind != JSON_ARRAY) return NULL;
  for (const struct json* one = given->first; one; one = one->next, count++) {
    if (one->kind != JSON_STRING) return NULL;
    if (strlen(one->string) != one->length) {
      *reason = "ValueError: embedded null byte";
      return NULL;
    }
  }
  *reason = "IndexError: list index out of range";
  if (count == 0) return NULL;
  char** args = calloc(count + 1, sizeof *args);
  count = 0;
  for (const struct json* one = given->first; args && one; one = one->next) args[count++] = one->string;
  return args;
}

static char** add_pair(char** env, const char* name, const char* value, size_t length) {
  struct text pair = {0};
  text_add(&pair, name, strlen(name));
  text_add(&pair, "=", 1);
  text_add(&pair, value, length);
  env = env_set(env, pair.data);
  text_free(&pair);
  return env;
}

static char** read_env(const struct json* request, const struct spawn* spawn) {
  char **env = NULL, mark[64];
  for (char** pair = config.env; pair && *pair; pair++) env = env_set(env, *pair);
  if (spawn->has_terminal) env = env_set(env, "TERM=xterm-256color");
  const struct user* user = &spawn->user;
  if (user->name[0]) {
    env = add_pair(env, "HOME", user->home, strlen(user->home));
    env = add_pair(env, "USER", user->name, strlen(user->name));
    env = add_pair(env, "LOGNAME", user->name, strlen(user->name));
  }
  const struct json* given = json_get(request, "env");
  for (const struct json* one = given && given->kind == JSON_OBJECT ? given->first : NULL; one;
       one = one->next) {
    if (one->kind == JSON_STRING) env = add_pair(env, one->name, one->string, one->length);
  }
  snprintf(mark, sizeof mark, "FORKD_EXEC_ID=%llu", (unsigned long long)spawn->ident);
  return env_set(env, mark);
}

bool spawn_read(struct spawn* spawn, const struct json* request, struct caller caller) {
  const char* reason = NULL;
  memset(spawn, 0, sizeof *spawn);
  spawn->user = config.user;
  const struct json *user = json_get(request, "user"), *terminal = json_get(request, "tty");
  if (user && user->kind != JSON_NULL) reason = user_of(json_text(request, "user"), &spawn->user);
  if (!reason) spawn->args = read_args(request, &reason);
  if (!spawn->args) {
    answer_error(caller, "%s", reason ? reason : "MemoryError");
    return false;
  }
  spawn->ident = new_ident();
  spawn->has_terminal = terminal && terminal->kind == JSON_TRUE;
  spawn->env = read_env(request, spawn);
  const char* cwd = json_text(request, "cwd");
  spawn->cwd = cwd ? cwd : config.cwd;
  // An image's directory need not be there, as containers make it; only one that was asked for must be.
  if (!cwd && access(spawn->cwd, F_OK) < 0) spawn->cwd = "/";
  return true;
}

void spawn_free(struct spawn* spawn) {
  for (char** pair = spawn->env; pair && *pair; pair++) free(*pair);
  free(spawn->env);
  free(spawn->args);
  if (spawn->user.groups != config.user.groups) free(spawn->user.groups);
  memset(spawn, 0, sizeof *spawn);
}
