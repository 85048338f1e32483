#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

enum { HELLO, REQUEST, REPLY };

static int epoll;
// False between a seal and the next fork that succeeds.
static bool released = true;

double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

void logf_(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  dprintf(2, "forkd-agent: ");
  vdprintf(2, format, arguments);
  dprintf(2, "\n");
  va_end(arguments);
}

void watch_add(int fd, uint32_t what, struct watch* watch) {
  struct epoll_event event = {.events = what, .data.ptr = watch};
  if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) < 0) logf_("epoll: %s", strerror(errno));
}

void watch_remove(int fd) {
  epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
}

void answer(struct caller caller, const char* body, size_t length) {
  if (caller.connection)
    tcp_answer(caller.connection, body, length);
  else
    port_send(REPLY, caller.id, body, length);
}

void answer_error(struct caller caller, const char* format, ...) {
  char message[512];
  struct text body = {0};
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  text_add(&body, "{\"error\": ", 10);
  json_quote(&body, message, strlen(message));
  text_add(&body, ", \"exit_code\": 1}", 17);
  answer(caller, body.data, body.length);
  text_free(&body);
}

void errno_text(struct text* text, int number, const char* what) {
  static const struct {
    int number;
    const char* name;
  } names[] = {
      {ENOENT, "FileNotFoundError"},
      {EACCES, "PermissionError"},
      {EPERM, "PermissionError"},
      {EEXIST, "FileExistsError"},
      {ENOTDIR, "NotADirectoryError"},
      {EISDIR, "IsADirectoryError"},
      {ECONNREFUSED, "ConnectionRefusedError"},
      {ESRCH, "ProcessLookupError"},
      {EPIPE, "BrokenPipeError"},
  };
  const char* name = "OSError";
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (names[i].number == number) name = names[i].name;
  text_addf(text, "%s: [Errno %d] %s", name, number, strerror(number));
  if (!what) return;
  text_add(text, ": '", 3);
  text_add(text, what, strlen(what));
  text_add(text, "'", 1);
}

void answer_errno(struct caller caller, int number, const char* what) {
  struct text message = {0}, body = {0};
  errno_text(&message, number, what);
  text_add(&body, "{\"error\": ", 10);
  json_quote(&body, message.data, message.length);
  text_add(&body, ", \"exit_code\": 1}", 17);
  answer(caller, body.data, body.length);
  text_free(&message);
  text_free(&body);
}

static void answer_ping(struct caller caller) {
  struct text body = {0};
  text_addf(&body,
            "{\"pong\": true, \"numpy_version\": \"not-installed\", \"pid\": %d, \"agent_lang\": \"c\", "
            "\"warmup_ready\": false, "
            "\"generation\": %d, \"released\": %s}",
            getpid(), GENERATION, released ? "true" : "false");
  answer(caller, body.data, body.length);
  text_free(&body);
}

static void answer_fork(struct caller caller, const struct json* request) {
  struct text body = {0};
  released = false;
  // They are the host's of the machine that this is a copy of.
  streams_drop();
  released = identity_take(request, &body);
  answer(caller, body.data, body.length);
  text_free(&body);
}

static void answer_clock(struct caller caller, const struct json* request) {
  const char* problem = set_clock(json_text(request, "clock_ns"));
  if (problem)
    answer_error(caller, "%s", problem);
  else
    answer(caller, "{\"exit_code\": 0}", strlen("{\"exit_code\": 0}"));
}

// Everything but what makes a copy its own, and what only asks for it.
static bool is_for_released(const char* action) {
  static const char* const early[] = {"ping", "fork", "clock", "seal"};
  for (size_t i = 0; i < sizeof early / sizeof *early; i++)
    if (strcmp(action, early[i]) == 0) return false;
  return true;
}

static void act(struct caller caller, const struct json* request) {
  const char* action = json_text(request, "action");
  if (!action) action = "None";
  if (!released && is_for_released(action)) {
    answer_error(
        caller,
        "NotReleased: this copy has not taken its own identity yet (no successful fork since the seal)");
  } else if (strcmp(action, "exec") == 0) {
    exec_start(caller, request);
  } else if (strcmp(action, "eval") == 0) {
    answer_error(caller, "EvalUnsupported: this guest has no Python; use exec");
  } else if (strcmp(action, "ping") == 0) {
    answer_ping(caller);
  } else if (strcmp(action, "fork") == 0) {
    answer_fork(caller, request);
  } else if (strcmp(action, "clock") == 0) {
    answer_clock(caller, request);
  } else if (strcmp(action, "seal") == 0) {
    released = false;
    static const char sealed[] = "{\"sealed\": true, \"exit_code\": 0}";
    answer(caller, sealed, sizeof sealed - 1);
  } else if (!files_answer(caller, action, request) && !streams_start(caller, action, request)) {
    answer_error(caller, "unknown action: %.200s", action);
  }
}

void handle_request(struct caller caller, const char* data, size_t length) {
  struct json* request = json_parse(data, length);
  if (!request)
    answer_error(caller, "JSONDecodeError: the request is not JSON");
  else if (request->kind != JSON_OBJECT)
    answer_error(caller, "AttributeError: the request is not an object");
  else
    act(caller, request);
  json_free(request);
}

static int children;

static void on_children(struct watch* watch, uint32_t what) {
  (void)watch, (void)what;
  struct signalfd_siginfo info;
  while (read(children, &info, sizeof info) > 0)
    ;
  int status;
  // Others are orphans that PID 1 has inherited.
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
    if (!exec_exited(pid, status)) program_exited(pid, status);
}

static void watch_children(void) {
  static struct watch watch = {on_children};
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGCHLD);
  sigprocmask(SIG_BLOCK, &mask, NULL);
  children = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
  watch_add(children, EPOLLIN, &watch);
}

static void say_hello(void) {
  struct timespec time;
  char body[160];
  clock_gettime(CLOCK_BOOTTIME, &time);
  int length = snprintf(
      body, sizeof body,
      "{\"generation\": %d, \"uptime_ms\": %lld, \"python\": \"\", \"numpy_version\": \"not-installed\"}",
      GENERATION, (long long)time.tv_sec * 1000 + time.tv_nsec / 1000000);
  port_send(HELLO, 0, body, (size_t)length);
}

// Of two waits, of which a negative one is for ever.
static double soonest(double a, double b) {
  return a < 0 || (b >= 0 && b < a) ? b : a;
}

int main(void) {
  epoll = epoll_create1(EPOLL_CLOEXEC);
  signal(SIGPIPE, SIG_IGN);
  int null = open("/dev/null", O_RDONLY);
  if (null > 0) dup2(null, 0), close(null);
  if (chdir("/") < 0) logf_("chdir: %s", strerror(errno));
  config_read();
  exec_init();
  identity_init();
  watch_children();
  tcp_open();
  if (port_open())
    say_hello();
  else
    logf_("no virtio-serial port named forkd.agent.0: serving TCP only");
  bool busy = false;
  for (;;) {
    double wait = busy ? 0 : soonest(soonest(exec_wait(), program_wait()), watch_wait());
    struct epoll_event event;
    // One at a time: what is done for one may end what another is for.
    if (epoll_wait(epoll, &event, 1, busy ? 0 : wait < 0 ? -1 : (int)(wait * 1000) + 1) == 1) {
      struct watch* watch = event.data.ptr;
      watch->ready(watch, event.events);
    }
    exec_tick();
    program_tick();
    watch_tick();
    busy = streams_step();
  }
}
