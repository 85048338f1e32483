#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

// A grandchild in the background may hold the pipes long after the program ended: the answer does not wait
// for it.
#define LINGER_SECONDS 0.2
// A killed process normally goes at once; one that hangs in the kernel must not keep its caller waiting.
#define KILL_SECONDS 2.0
#define TIMEOUT_SECONDS 30.0

struct pipe_end {
  struct watch watch;
  struct run* run;
  int fd;
  struct text text;
  size_t size;
};

struct run {
  struct caller caller;
  uint64_t ident;
  pid_t pid;
  struct pipe_end out, err, in;
  size_t in_sent;
  double timeout, deadline;
  bool timed_out, exited, answered;
  int status;
  struct run* next;
};

static struct run* runs;
static uint64_t idents;
static size_t output_max;

void exec_init(void) {
  // JSON may need six characters for a byte, twice.
  size_t total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 32;
  output_max = total < (64u << 20) ? total : 64u << 20;
}

// --- starting a program
// ----------------------------------------------------------------------------------------------

enum stage { STAGE_EXEC, STAGE_CWD, STAGE_USER };
struct failure {
  int number;
  enum stage stage;
};

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

static void become(char** args, char** env, const char* cwd, const int fds[3], int report) {
  struct failure failure = {0, STAGE_USER};
  sigset_t none;
  sigemptyset(&none);
  for (int number = 1; number < 32; number++) signal(number, SIG_DFL);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setsid();
  for (int i = 0; i < 3; i++)
    if (dup2(fds[i], i) < 0) _exit(127);
  if (config.has_user && (setgroups(config.group_count, config.groups) < 0 || setgid(config.gid) < 0 ||
                          setuid(config.uid) < 0)) {
    failure.number = errno;
  } else if (chdir(cwd) < 0) {
    failure = (struct failure){errno, STAGE_CWD};
  } else {
    failure = (struct failure){exec_in_path(args, env), STAGE_EXEC};
  }
  if (write(report, &failure, sizeof failure) < 0) _exit(126);
  _exit(127);
}

// The program's pid; or -1, with the reason in `failure`.
static pid_t start(char** args, char** env, const char* cwd, const int fds[3], struct failure* failure) {
  int report[2];
  *failure = (struct failure){0, STAGE_EXEC};
  if (pipe2(report, O_CLOEXEC) < 0) {
    failure->number = errno;
    return -1;
  }
  pid_t pid = fork();
  if (pid == 0) become(args, env, cwd, fds, report[1]);
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
  int null = open("/dev/null", O_RDWR | O_CLOEXEC), fds[3] = {null, 2, 2};
  pid_t pid = start(args, env, "/", fds, &failure);
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

// --- answering
// -------------------------------------------------------------------------------------------------------

static void close_end(struct pipe_end* end) {
  if (end->fd < 0) return;
  watch_remove(end->fd);
  close(end->fd);
  end->fd = -1;
}

static void add_output(struct text* reply, const char* name, struct pipe_end* end) {
  char note[80];
  if (end->size > output_max) {
    int length = snprintf(note, sizeof note, "\n[forkd: %s truncated at %zu bytes]\n", name, output_max);
    text_add(&end->text, note, (size_t)length);
  }
  text_addf(reply, "\"%s\": ", name);
  json_quote(reply, end->text.data ? end->text.data : "", end->text.length);
  text_add(reply, ", ", 2);
  text_free(&end->text);
}

// Reads once; false when there is nothing more.
static bool pull(struct pipe_end* end) {
  char data[65536];
  ssize_t got = read(end->fd, data, sizeof data);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (got <= 0) {
    close_end(end);
    return false;
  }
  if (!end->run->answered && end->size < output_max) {
    size_t room = output_max - end->size;
    text_add(&end->text, data, (size_t)got < room ? (size_t)got : room);
  }
  end->size += (size_t)got;
  return true;
}

static void answer_run(struct run* run) {
  struct text reply = {0};
  // Not for ever: what it left in the background may go on writing.
  while (run->out.fd >= 0 && run->out.size < output_max && pull(&run->out))
    ;
  while (run->err.fd >= 0 && run->err.size < output_max && pull(&run->err))
    ;
  int code = !run->exited               ? -SIGKILL
             : WIFSIGNALED(run->status) ? -WTERMSIG(run->status)
                                        : WEXITSTATUS(run->status);
  text_add(&reply, "{", 1);
  add_output(&reply, "stdout", &run->out);
  add_output(&reply, "stderr", &run->err);
  text_addf(&reply, "\"exit_code\": %d", code);
  if (run->timed_out)
    text_addf(&reply,
              ", \"timed_out\": true, \"error\": \"TimeoutExpired: Command timed out after %g seconds\"",
              run->timeout);
  text_add(&reply, "}", 1);
  run->answered = true;
  close_end(&run->in);
  text_free(&run->in.text);
  answer(run->caller, reply.data, reply.length);
  text_free(&reply);
}

// What holds an answered program's pipes is still read, and dropped: closing them would kill a service in the
// background.
static void settle(struct run* run) {
  if (run->exited && run->out.fd < 0 && run->err.fd < 0) {
    if (!run->answered) answer_run(run);
    struct run** link = &runs;
    while (*link != run) link = &(*link)->next;
    *link = run->next;
    free(run);
  }
}

static void on_output(struct watch* watch, uint32_t events) {
  struct pipe_end* end = (struct pipe_end*)watch;
  struct run* run = end->run;
  (void)events;
  if (end->fd >= 0) pull(end);
  settle(run);
}

static void on_input(struct watch* watch, uint32_t events) {
  struct pipe_end* end = (struct pipe_end*)watch;
  struct run* run = end->run;
  (void)events;
  ssize_t sent = write(end->fd, end->text.data + run->in_sent, end->text.length - run->in_sent);
  if (sent < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (sent > 0) run->in_sent += (size_t)sent;
  if (sent < 0 || run->in_sent == end->text.length) close_end(end);
}

void exec_reap(void) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) {
    struct run* run = runs;
    while (run && (run->pid != pid || run->exited)) run = run->next;
    // An orphan that PID 1 has inherited.
    if (!run) continue;
    run->exited = true;
    run->status = status;
    run->deadline = now() + LINGER_SECONDS;
    settle(run);
  }
}

double exec_wait(void) {
  double first = -1;
  for (const struct run* run = runs; run; run = run->next)
    if (!run->answered && run->deadline >= 0 && (first < 0 || run->deadline < first)) first = run->deadline;
  if (first < 0) return -1;
  double left = first - now();
  return left > 0 ? left : 0;
}

void exec_tick(void) {
  for (struct run *run = runs, *next; run; run = next) {
    next = run->next;
    if (run->answered || run->deadline < 0 || now() < run->deadline) continue;
    if (run->exited || run->timed_out) {
      answer_run(run);
      settle(run);
      continue;
    }
    run->timed_out = true;
    run->deadline = now() + KILL_SECONDS;
    kill_tree(run->pid, run->ident);
  }
}

// --- the request
// -----------------------------------------------------------------------------------------------------

static void answer_failure(struct caller caller, struct failure failure, const char* what) {
  struct text quoted = {0}, body = {0};
  const char* name = failure.number == ENOENT   ? "FileNotFoundError"
                     : failure.number == EACCES ? "PermissionError"
                                                : "OSError";
  text_addf(&quoted, "%s: [Errno %d] %s: '", name, failure.number, strerror(failure.number));
  text_add(&quoted, what, strlen(what));
  text_add(&quoted, "'", 1);
  text_add(&body, "{\"error\": ", 10);
  json_quote(&body, quoted.data, quoted.length);
  text_add(&body, ", \"exit_code\": 1}", 17);
  answer(caller, body.data, body.length);
  text_free(&quoted);
  text_free(&body);
}

// `args` as a list that ends in a null and points into the request; null when it is none, with the reason.
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

static char** read_env(const struct json* request, uint64_t ident) {
  char **env = NULL, mark[64];
  for (char** pair = config.env; pair && *pair; pair++) env = env_set(env, *pair);
  const struct json* given = json_get(request, "env");
  for (const struct json* one = given && given->kind == JSON_OBJECT ? given->first : NULL; one;
       one = one->next) {
    struct text pair = {0};
    if (one->kind != JSON_STRING) continue;
    text_add(&pair, one->name, strlen(one->name));
    text_add(&pair, "=", 1);
    text_add(&pair, one->string, one->length);
    env = env_set(env, pair.data);
    text_free(&pair);
  }
  snprintf(mark, sizeof mark, "FORKD_EXEC_ID=%llu", (unsigned long long)ident);
  return env_set(env, mark);
}

static void env_free(char** env) {
  for (char** pair = env; pair && *pair; pair++) free(*pair);
  free(env);
}

static bool open_pipes(int out[2], int err[2], int in[2], bool has_input) {
  if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0) return false;
  if (has_input) return pipe2(in, O_CLOEXEC) == 0;
  in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return in[0] >= 0;
}

static void close_both(int pair[2]) {
  for (int i = 0; i < 2; i++)
    if (pair[i] >= 0) close(pair[i]);
}

static void attach(struct pipe_end* end, struct run* run, int fd, uint32_t events,
                   void (*ready)(struct watch*, uint32_t)) {
  end->run = run;
  end->fd = fd;
  end->watch.ready = ready;
  if (fd < 0) return;
  fcntl(fd, F_SETFL, O_NONBLOCK);
  watch_add(fd, events, &end->watch);
}

void exec_start(struct caller caller, const struct json* request) {
  const struct json *input = json_get(request, "stdin"), *timeout = json_get(request, "timeout");
  const char *reason, *cwd = json_text(request, "cwd");
  bool has_input = input && input->kind == JSON_STRING;
  if (timeout && timeout->kind != JSON_NUMBER && timeout->kind != JSON_NULL) {
    answer_error(caller, "TypeError: timeout must be a number");
    return;
  }
  char** args = read_args(request, &reason);
  if (!args) {
    answer_error(caller, "%s", reason);
    return;
  }
  struct run* run = calloc(1, sizeof *run);
  int out[2] = {-1, -1}, err[2] = {-1, -1}, in[2] = {-1, -1};
  if (!run || !open_pipes(out, err, in, has_input)) {
    answer_failure(caller, (struct failure){errno, STAGE_EXEC}, args[0]);
    close_both(out), close_both(err), close_both(in);
    free(run), free(args);
    return;
  }
  struct failure failure;
  char** env = read_env(request, ++idents);
  const char* directory = cwd ? cwd : config.cwd;
  // An image's directory need not be there, as containers make it; only one that was asked for must be.
  if (!cwd && access(directory, F_OK) < 0) directory = "/";
  run->pid = start(args, env, directory, (int[]){in[0], out[1], err[1]}, &failure);
  env_free(env);
  close(in[0]), close(out[1]), close(err[1]);
  if (run->pid < 0) {
    answer_failure(caller, failure,
                   failure.stage == STAGE_CWD    ? directory
                   : failure.stage == STAGE_USER ? "user"
                                                 : args[0]);
    close(out[0]), close(err[0]);
    if (has_input) close(in[1]);
    free(run), free(args);
    return;
  }
  free(args);
  run->caller = caller;
  run->ident = idents;
  run->timeout = !timeout ? TIMEOUT_SECONDS : timeout->kind == JSON_NULL ? -1 : timeout->number;
  run->deadline = run->timeout < 0 ? -1 : now() + run->timeout;
  run->next = runs;
  runs = run;
  attach(&run->out, run, out[0], EPOLLIN, on_output);
  attach(&run->err, run, err[0], EPOLLIN, on_output);
  if (has_input) text_add(&run->in.text, input->string, input->length);
  attach(&run->in, run, has_input ? in[1] : -1, EPOLLOUT, on_input);
}
