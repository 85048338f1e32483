// Programs that are heard while they run: with input, with a terminal, in the background, attached to again.
#include <errno.h>
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define STDOUT 1
#define STDERR 2
// The newest output of a program that nobody listens to.
#define TAIL_BYTES (256 * 1024)
// Programs in the background that have ended, kept until somebody attaches; of more, the oldest go.
#define ENDED_MAX 64

struct kept {
  uint8_t channel;
  size_t length;
  struct kept* next;
  char data[];
};

struct program;

struct run_stream {
  struct stream stream;
  // Null once it is another's, or over.
  struct program* program;
};

struct output {
  struct source source;
  uint8_t channel;
  // Nothing more of it counts.
  bool done;
};

struct program {
  uint64_t number, ident;
  pid_t pid;
  char** args;
  bool detached;
  struct timespec began;
  int terminal;
  struct output out, err;
  struct sink in;
  struct run_stream* listener;
  struct kept *tail, *newest;
  size_t tail_bytes;
  double timeout, deadline;
  // Reaped; over: its exit code is known; removed: nobody can ask for it any more.
  bool timed_out, exited, over, removed;
  int exit_code, status;
  struct program* next;
};

static struct program* programs;
static uint64_t count;

// --- what nobody has heard yet
// ---------------------------------------------------------------------------------------

static void drop_oldest(struct program* one) {
  struct kept* oldest = one->tail;
  one->tail = oldest->next;
  if (!one->tail) one->newest = NULL;
  one->tail_bytes -= oldest->length;
  free(oldest);
}

static void keep(struct program* one, uint8_t channel, const char* data, size_t length) {
  struct kept* kept = malloc(sizeof *kept + length);
  if (!kept) return;
  *kept = (struct kept){.channel = channel, .length = length};
  memcpy(kept->data, data, length);
  if (one->newest)
    one->newest->next = kept;
  else
    one->tail = kept;
  one->newest = kept;
  one->tail_bytes += length;
  while (one->tail_bytes > TAIL_BYTES) drop_oldest(one);
}

static void send_kept(struct program* one) {
  struct stream* stream = &one->listener->stream;
  while (one->tail && stream->credit > 0) {
    struct kept* oldest = one->tail;
    if ((int64_t)oldest->length <= stream->credit) {
      stream_data(stream, oldest->channel, oldest->data, oldest->length);
      drop_oldest(one);
      continue;
    }
    size_t part = (size_t)stream->credit;
    stream_data(stream, oldest->channel, oldest->data, part);
    memmove(oldest->data, oldest->data + part, oldest->length - part);
    oldest->length -= part;
    one->tail_bytes -= part;
  }
}

// --- its end
// ---------------------------------------------------------------------------------------------------------

// To whoever listens, when it has heard all.
static void tell_end(struct program* one) {
  struct run_stream* listener = one->listener;
  if (!listener || one->tail) return;
  one->listener = NULL;
  listener->program = NULL;
  one->removed = true;
  if (one->timed_out)
    stream_finish(
        &listener->stream,
        "{\"exit_code\": %d, \"timed_out\": true, \"error\": \"TimeoutExpired: Command timed out after "
        "%g seconds\"}",
        one->exit_code, one->timeout);
  else
    stream_finish(&listener->stream, "{\"exit_code\": %d}", one->exit_code);
}

static void prune(void) {
  size_t ended = 0;
  // The newest come first.
  for (struct program* one = programs; one; one = one->next)
    if (one->over && !one->removed && !one->listener && ++ended > ENDED_MAX) one->removed = true;
}

// And the terminal.
static void close_input(struct program* one) {
  sink_close(&one->in);
  if (one->terminal >= 0) close(one->terminal);
  one->terminal = -1;
}

static void end(struct program* one) {
  one->deadline = -1;
  one->over = true;
  one->exit_code = WIFSIGNALED(one->status) ? -WTERMSIG(one->status) : WEXITSTATUS(one->status);
  close_input(one);
  if (!one->detached) one->removed = true;
  tell_end(one);
  prune();
}

static void end_when_done(struct program* one) {
  if (one->exited && !one->over && one->out.done && one->err.done) end(one);
}

static size_t much_room(struct source* source) {
  (void)source;
  return CHUNK;
}

static void ignore(struct source* source, const char* data, size_t length) {
  (void)source, (void)data, (void)length;
}

// Read and dropped from now on: closing a pipe would kill a service that was left in the background.
static void let_go(struct program* one, struct output* output) {
  output->done = true;
  if (one->terminal >= 0) {
    source_close(&output->source);
    return;
  }
  output->source.room = much_room;
  output->source.give = ignore;
  output->source.left = -1;
  source_resume(&output->source);
}

static void linger_output(struct program* one, struct output* output) {
  int waiting = 0;
  if (output->done) return;
  if (ioctl(output->source.fd, FIONREAD, &waiting) < 0) waiting = 0;
  output->source.left = waiting;
  if (waiting == 0) let_go(one, output);
}

// Somebody in the background still holds the output: what is in there now is the last that counts.
static void lingered(struct program* one) {
  one->deadline = -1;
  linger_output(one, &one->out);
  linger_output(one, &one->err);
  end_when_done(one);
}

bool program_exited(pid_t pid, int status) {
  struct program* one = programs;
  while (one && (one->pid != pid || one->exited)) one = one->next;
  if (!one) return false;
  one->exited = true;
  one->status = status;
  one->deadline = now() + LINGER_SECONDS;
  // One that hung was told of already.
  if (one->over) {
    one->deadline = -1;
    close_input(one);
  }
  end_when_done(one);
  return true;
}

// --- output
// ----------------------------------------------------------------------------------------------------------

static size_t room(struct source* source) {
  struct program* one = source->owner;
  if (!one->listener) return CHUNK;
  int64_t credit = one->listener->stream.credit;
  return one->tail || credit <= 0 ? 0 : (size_t)credit;
}

static void give(struct source* source, const char* data, size_t length) {
  struct program* one = source->owner;
  struct output* output = source == &one->out.source ? &one->out : &one->err;
  if (length > 0 && one->listener)
    stream_data(&one->listener->stream, output->channel, data, length);
  else if (length > 0 && one->detached)
    keep(one, output->channel, data, length);
  if (length > 0 && source->left != 0) return;
  if (length > 0)
    let_go(one, output);
  else
    output->done = true;
  end_when_done(one);
}

static void listen_on(struct program* one) {
  if (!one->out.done) source_resume(&one->out.source);
  if (!one->err.done) source_resume(&one->err.source);
}

// Sends what was kept, then what comes.
static void pump(struct program* one) {
  if (one->listener) send_kept(one);
  if (one->listener && one->tail) return;
  listen_on(one);
  if (one->over) tell_end(one);
}

// --- the streams
// -----------------------------------------------------------------------------------------------------

static void consumed(struct sink* sink, size_t bytes) {
  struct program* one = sink->owner;
  if (one->listener) stream_consumed(&one->listener->stream, bytes);
}

static void input_ended(struct sink* sink) {
  sink_close(sink);
}

static void on_data(struct stream* stream, const char* data, size_t length) {
  struct program* one = ((struct run_stream*)stream)->program;
  if (one) sink_take(&one->in, data, length);
}

static void on_end(struct stream* stream) {
  struct program* one = ((struct run_stream*)stream)->program;
  if (!one) return;
  // What a user types to say so.
  if (one->terminal >= 0)
    sink_take(&one->in, "\x04", 1);
  else
    sink_finish(&one->in);
}

static void on_credit(struct stream* stream) {
  struct program* one = ((struct run_stream*)stream)->program;
  if (one) pump(one);
}

static void on_close(struct stream* stream) {
  struct run_stream* listener = (struct run_stream*)stream;
  struct program* one = listener->program;
  if (!one) return;
  if (!one->detached && stream->heard) {
    // It hears how the program ended, and no more output.
    stream_mute(stream);
    if (!one->exited) kill_tree(one->pid, one->ident);
    pump(one);
    return;
  }
  one->listener = NULL;
  listener->program = NULL;
  listen_on(one);
  stream->heard = false;
  stream_finish(stream, "{}");
}

static void set_size(int terminal, const struct json* request) {
  const struct json *rows = json_get(request, "rows"), *cols = json_get(request, "cols");
  struct winsize size = {24, 80, 0, 0};
  if (rows && rows->kind == JSON_NUMBER && rows->number >= 1) size.ws_row = (unsigned short)rows->number;
  if (cols && cols->kind == JSON_NUMBER && cols->number >= 1) size.ws_col = (unsigned short)cols->number;
  ioctl(terminal, TIOCSWINSZ, &size);
}

// 0 when there is none of that name or number.
static int signal_number(const struct json* given) {
  if (given->kind == JSON_NUMBER) return given->number >= 1 && given->number <= 64 ? (int)given->number : 0;
  const char* name = given->kind == JSON_STRING ? given->string : "";
  if (strncasecmp(name, "SIG", 3) == 0) name += 3;
  for (int number = 1; number < 32; number++) {
    const char* known = sigabbrev_np(number);
    if (known && strcasecmp(known, name) == 0) return number;
  }
  return 0;
}

static const char* control(struct program* one, const struct json* request) {
  const struct json* given = json_get(request, "signal");
  if (one->over) return "ProcessLookupError: the program has ended";
  if (given) {
    int number = signal_number(given);
    if (number == 0) return "ValueError: there is no such signal";
    return kill(-one->pid, number) < 0 ? "ProcessLookupError: [Errno 3] No such process" : NULL;
  }
  if (!json_get(request, "rows")) return "ValueError: control needs signal, or rows and cols";
  if (one->terminal < 0) return "ValueError: the program has no terminal";
  set_size(one->terminal, request);
  return NULL;
}

static const char* on_control(struct stream* stream, const struct json* request) {
  struct program* one = ((struct run_stream*)stream)->program;
  return one ? control(one, request) : "ProcessLookupError: the program has ended";
}

static void on_free(struct stream* stream) {
  free(stream);
}

static const struct stream_kind kind = {.data = on_data,
                                        .end = on_end,
                                        .credit = on_credit,
                                        .control = on_control,
                                        .close = on_close,
                                        .free = on_free};

static void attach(struct program* one, struct run_stream* listener) {
  struct run_stream* before = one->listener;
  if (before) {
    before->program = NULL;
    stream_fail(&before->stream, "Replaced: another attach took its place");
  }
  one->listener = listener;
  listener->program = one;
  char facts[128];
  int length = snprintf(facts, sizeof facts, "{\"run\": %llu, \"pid\": %d, \"tty\": %s}",
                        (unsigned long long)one->number, one->pid, one->terminal >= 0 ? "true" : "false");
  stream_opened(&listener->stream, facts, (size_t)length);
  pump(one);
}

// --- starting
// --------------------------------------------------------------------------------------------------------

static void free_program(struct program* one) {
  while (one->tail) drop_oldest(one);
  for (char** arg = one->args; arg && *arg; arg++) free(*arg);
  free(one->args);
  text_free(&one->in.queue);
  free(one);
}

static char** copy_args(char** args) {
  size_t length = 0;
  while (args[length]) length++;
  char** copy = calloc(length + 1, sizeof *copy);
  for (size_t i = 0; copy && i < length; i++) copy[i] = strdup(args[i]);
  return copy;
}

static void close_all(const int* fds, size_t length) {
  for (size_t i = 0; i < length; i++)
    if (fds[i] >= 0) close(fds[i]);
}

// Ours: stdin, stdout, stderr, terminal; -1 for what there is not. 0, or an errno.
static int spawn_on_terminal(struct spawn* spawn, const struct json* request, int ours[4], pid_t* pid,
                             struct failure* failure) {
  int master, slave;
  if (openpty(&master, &slave, NULL, NULL, NULL) < 0) return errno;
  fcntl(master, F_SETFD, FD_CLOEXEC);
  fcntl(slave, F_SETFD, FD_CLOEXEC);
  set_size(master, request);
  if (spawn->user.is_set && fchown(slave, spawn->user.uid, (gid_t)-1) < 0) logf_("pty: %s", strerror(errno));
  for (int i = 0; i < 3; i++) spawn->fds[i] = slave;
  *pid = spawn_program(spawn, failure);
  close(slave);
  // One descriptor for each direction: each is watched by itself.
  ours[0] = fcntl(master, F_DUPFD_CLOEXEC, 0);
  ours[1] = fcntl(master, F_DUPFD_CLOEXEC, 0);
  ours[3] = master;
  return 0;
}

static int spawn_on_pipes(struct spawn* spawn, bool has_input, int ours[4], pid_t* pid,
                          struct failure* failure) {
  int theirs[3] = {-1, -1, -1};
  int problem = 0;
  for (int i = 0; i < 3 && !problem; i++) {
    int ends[2];
    if (i == 0 && !has_input) {
      theirs[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
      problem = theirs[0] < 0 ? errno : 0;
    } else if (pipe2(ends, O_CLOEXEC) < 0) {
      problem = errno;
    } else {
      theirs[i] = ends[i == 0 ? 0 : 1];
      ours[i] = ends[i == 0 ? 1 : 0];
    }
  }
  if (!problem) {
    memcpy(spawn->fds, theirs, sizeof theirs);
    *pid = spawn_program(spawn, failure);
  }
  close_all(theirs, 3);
  return problem;
}

static bool is_true(const struct json* request, const char* name) {
  const struct json* value = json_get(request, name);
  return value && value->kind == JSON_TRUE;
}

// Null when it was answered why not.
static struct program* start(struct caller caller, const struct json* request) {
  struct spawn spawn;
  int ours[4] = {-1, -1, -1, -1};
  pid_t pid = -1;
  struct failure failure = {0, STAGE_EXEC};
  const struct json* timeout = json_get(request, "timeout");
  if (!spawn_read(&spawn, request, caller)) return NULL;
  int problem = spawn.has_terminal ? spawn_on_terminal(&spawn, request, ours, &pid, &failure)
                                   : spawn_on_pipes(&spawn, is_true(request, "stdin"), ours, &pid, &failure);
  if (problem) failure.number = problem;
  struct program* one = failure.number ? NULL : calloc(1, sizeof *one);
  if (!one) {
    answer_spawn_failure(caller, failure, &spawn);
    close_all(ours, 4);
    spawn_free(&spawn);
    return NULL;
  }
  one->number = ++count;
  one->ident = spawn.ident;
  one->pid = pid;
  one->args = copy_args(spawn.args);
  one->detached = is_true(request, "detach");
  clock_gettime(CLOCK_REALTIME, &one->began);
  one->terminal = ours[3];
  one->timeout = timeout && timeout->kind == JSON_NUMBER ? timeout->number : -1;
  one->deadline = one->timeout < 0 ? -1 : now() + one->timeout;
  spawn_free(&spawn);
  one->out.channel = STDOUT;
  one->err.channel = STDERR;
  source_open(&one->out.source, ours[1], one, room, give);
  one->err.done = ours[2] < 0;
  one->err.source.fd = -1;
  if (ours[2] >= 0) source_open(&one->err.source, ours[2], one, room, give);
  sink_open(&one->in, ours[0], one, consumed, input_ended);
  one->next = programs;
  programs = one;
  return one;
}

static struct program* find(const struct json* request) {
  const struct json* number = json_get(request, "run");
  struct program* one = programs;
  if (!number || number->kind != JSON_NUMBER) return NULL;
  while (one && (one->removed || (double)one->number != number->number)) one = one->next;
  return one;
}

void program_run(struct caller caller, const struct json* request) {
  if (!is_true(request, "detach")) {
    struct run_stream* listener = calloc(1, sizeof *listener);
    if (!listener || !stream_open(&listener->stream, &kind, caller, request)) {
      free(listener);
      return;
    }
    struct program* one = start(caller, request);
    if (one) {
      attach(one, listener);
      return;
    }
    // It was answered.
    listener->stream.heard = false;
    stream_finish(&listener->stream, "{}");
    return;
  }
  if (caller.connection) {
    answer_error(caller, "ValueError: run needs the framed port");
    return;
  }
  struct program* one = start(caller, request);
  if (!one) return;
  char body[96];
  int length = snprintf(body, sizeof body, "{\"run\": %llu, \"pid\": %d, \"exit_code\": 0}",
                        (unsigned long long)one->number, one->pid);
  answer(caller, body, (size_t)length);
  listen_on(one);
}

void program_attach(struct caller caller, const struct json* request) {
  struct program* one = find(request);
  if (!one) {
    answer_error(caller, "LookupError: no such program in the background");
    return;
  }
  struct run_stream* listener = calloc(1, sizeof *listener);
  if (!listener || !stream_open(&listener->stream, &kind, caller, request)) {
    free(listener);
    return;
  }
  attach(one, listener);
}

static void add_program(struct text* body, const struct program* one) {
  text_addf(body, "{\"run\": %llu, \"pid\": %d, \"args\": [", (unsigned long long)one->number, one->pid);
  for (char** arg = one->args; arg && *arg; arg++) {
    if (arg != one->args) text_add(body, ", ", 2);
    json_quote(body, *arg, strlen(*arg));
  }
  text_addf(body, "], \"tty\": %s, \"attached\": %s, \"began_unix\": %lld.%03ld, \"exit_code\": ",
            one->terminal >= 0 ? "true" : "false", one->listener ? "true" : "false",
            (long long)one->began.tv_sec, one->began.tv_nsec / 1000000);
  if (one->over)
    text_addf(body, "%d}", one->exit_code);
  else
    text_add(body, "null}", 5);
}

// The newest come first in the list, the oldest in the answer.
static void add_programs(struct text* body, const struct program* one, size_t empty) {
  if (!one) return;
  add_programs(body, one->next, empty);
  if (!one->detached || one->removed) return;
  if (body->length > empty) text_add(body, ", ", 2);
  add_program(body, one);
}

void program_list(struct caller caller) {
  struct text body = {0};
  text_add(&body, "{\"runs\": [", 10);
  add_programs(&body, programs, body.length);
  text_add(&body, "], \"exit_code\": 0}", 18);
  answer(caller, body.data, body.length);
  text_free(&body);
}

void program_control(struct caller caller, const struct json* request) {
  struct program* one = find(request);
  const char* reason = one ? control(one, request) : "LookupError: no such program in the background";
  if (reason)
    answer_error(caller, "%s", reason);
  else
    answer(caller, "{\"exit_code\": 0}", 16);
}

// --- time
// ------------------------------------------------------------------------------------------------------------

double program_wait(void) {
  double first = -1;
  for (const struct program* one = programs; one; one = one->next)
    if (one->deadline >= 0 && (first < 0 || one->deadline < first)) first = one->deadline;
  if (first < 0) return -1;
  double left = first - now();
  return left > 0 ? left : 0;
}

static void late(struct program* one) {
  if (one->exited) {
    lingered(one);
  } else if (one->timed_out) {
    // It hangs in the kernel: its caller need not.
    one->deadline = -1;
    one->over = true;
    one->exit_code = -SIGKILL;
    one->removed = one->removed || !one->detached;
    while (one->tail) drop_oldest(one);
    tell_end(one);
  } else {
    one->timed_out = true;
    one->deadline = now() + KILL_SECONDS;
    kill_tree(one->pid, one->ident);
  }
}

void program_tick(void) {
  for (struct program** link = &programs; *link;) {
    struct program* one = *link;
    if (one->deadline >= 0 && now() >= one->deadline) late(one);
    bool is_gone =
        one->removed && one->exited && !one->listener && one->out.source.fd < 0 && one->err.source.fd < 0;
    if (!is_gone) {
      link = &one->next;
      continue;
    }
    *link = one->next;
    free_program(one);
  }
}
