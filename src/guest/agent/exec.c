#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"

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
static size_t output_max;

void exec_init(void) {
  // JSON may need six characters for a byte, twice.
  size_t total = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE) / 32;
  output_max = total < (64u << 20) ? total : 64u << 20;
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

bool exec_exited(pid_t pid, int status) {
  struct run* run = runs;
  while (run && (run->pid != pid || run->exited)) run = run->next;
  if (!run) return false;
  run->exited = true;
  run->status = status;
  run->deadline = now() + LINGER_SECONDS;
  settle(run);
  return true;
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

static bool open_pipes(int out[2], int err[2], int in[2], bool has_input) {
  if (pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0) return false;
  if (has_input) return pipe2(in, O_CLOEXEC) == 0;
  in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
  return in[0] >= 0;
}

void exec_start(struct caller caller, const struct json* request) {
  const struct json *input = json_get(request, "stdin"), *timeout = json_get(request, "timeout");
  bool has_input = input && input->kind == JSON_STRING;
  struct spawn spawn;
  if (timeout && timeout->kind != JSON_NUMBER && timeout->kind != JSON_NULL) {
    answer_error(caller, "TypeError: timeout must be a number");
    return;
  }
  if (!spawn_read(&spawn, request, caller)) return;
  // A terminal is for those who hear the program while it runs.
  spawn.has_terminal = false;
  struct run* run = calloc(1, sizeof *run);
  int out[2] = {-1, -1}, err[2] = {-1, -1}, in[2] = {-1, -1};
  struct failure failure = {0, STAGE_EXEC};
  if (!run || !open_pipes(out, err, in, has_input)) {
    failure.number = errno;
  } else {
    memcpy(spawn.fds, (int[]){in[0], out[1], err[1]}, sizeof spawn.fds);
    run->pid = spawn_program(&spawn, &failure);
  }
  if (failure.number) {
    answer_spawn_failure(caller, failure, &spawn);
    close_both(out), close_both(err), close_both(in);
    spawn_free(&spawn);
    free(run);
    return;
  }
  close(in[0]), close(out[1]), close(err[1]);
  run->caller = caller;
  run->ident = spawn.ident;
  run->timeout = !timeout ? TIMEOUT_SECONDS : timeout->kind == JSON_NULL ? -1 : timeout->number;
  run->deadline = run->timeout < 0 ? -1 : now() + run->timeout;
  run->next = runs;
  runs = run;
  spawn_free(&spawn);
  attach(&run->out, run, out[0], EPOLLIN, on_output);
  attach(&run->err, run, err[0], EPOLLIN, on_output);
  if (has_input) text_add(&run->in.text, input->string, input->length);
  attach(&run->in, run, has_input ? in[1] : -1, EPOLLOUT, on_input);
}
