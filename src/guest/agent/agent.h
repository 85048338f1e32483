// The agent for guests without Python: one static program, no library but libc, one thread. It speaks the
// protocol of docs/reference/agent-protocol.md, but for eval, which is refused.
//
//   main.c      start, the loop that waits, answers
//   port.c      the virtio-serial port: frames
//   tcp.c       TCP 8888: a line a connection
//   json.c      reading a request, writing a reply
//   exec.c      programs whose output is the answer: exit, timeout
//   spawn.c     starting a program
//   users.c     who it runs as
//   kill.c      ending a program with all that it started
//   identity.c  what makes a copy its own machine
//   config.c    what the image says: environment, directory, user
//
// Streams, requests that move bytes until their reply:
//   stream.c    those that are open: windows, frames, control
//   ends.c      descriptors that are read and written as the windows allow
//   program.c   programs that are heard while they run, and those in the background
//   connect.c   connections to services inside
//   transfer.c  files on their way
//   pack.c      a directory as a tar archive
//   unpack.c    a tar archive into a directory
//   watch.c     changes of files
//   files.c     what is asked about files without a stream
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define GENERATION 2

// --- text that grows (json.c)
// ----------------------------------------------------------------------------------------

struct text {
  char* data;
  size_t length, capacity;
};

void text_add(struct text* text, const void* data, size_t length);
void text_addf(struct text* text, const char* format, ...) __attribute__((format(printf, 2, 3)));
void text_free(struct text* text);

// --- JSON (json.c)
// ---------------------------------------------------------------------------------------------------

enum json_kind { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
  enum json_kind kind;
  double number;
  // Of a string: UTF-8, ended by a NUL that does not count; a NUL may also be inside.
  char* string;
  size_t length;
  // Of a member of an object.
  char* name;
  struct json *first, *next;
};

// Null when it is not one JSON document.
struct json* json_parse(const char* data, size_t length);
void json_free(struct json* value);
const struct json* json_get(const struct json* object, const char* name);
// Null unless it is a string without a NUL.
const char* json_text(const struct json* object, const char* name);
// In quotes; bytes that are no UTF-8 become U+FFFD.
void json_quote(struct text* text, const char* data, size_t length);
// A name of a file: bytes that are no UTF-8 stay what they are, as Python carries them.
void json_quote_name(struct text* text, const char* name);

// --- the loop (main.c)
// -----------------------------------------------------------------------------------------------

struct watch {
  void (*ready)(struct watch* watch, uint32_t events);
};

void watch_add(int fd, uint32_t events, struct watch* watch);
void watch_remove(int fd);
double now(void);
void logf_(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Who asked: a frame of the port (connection 0), or a connection.
struct caller {
  uint32_t id;
  uint64_t connection;
};

// `body` is a JSON object.
void answer(struct caller caller, const char* body, size_t length);
void answer_error(struct caller caller, const char* format, ...) __attribute__((format(printf, 2, 3)));
// As Python says it: `FileNotFoundError: [Errno 2] No such file or directory: 'what'`.
void errno_text(struct text* text, int number, const char* what);
void answer_errno(struct caller caller, int number, const char* what);
void handle_request(struct caller caller, const char* data, size_t length);

// --- ways in
// ---------------------------------------------------------------------------------------------------------

// False when there is no port.
bool port_open(void);
void port_send(uint8_t type, uint32_t id, const char* payload, size_t length);
// A frame whose payload is a byte for the channel and then data.
void port_send_data(uint32_t id, uint8_t channel, const char* data, size_t length);
void tcp_open(void);
void tcp_answer(uint64_t connection, const char* body, size_t length);

// --- the image (config.c)
// --------------------------------------------------------------------------------------------

struct user {
  // Else whoever the agent is: root.
  bool is_set;
  uid_t uid;
  gid_t gid;
  gid_t* groups;
  size_t group_count;
  // Empty when /etc/passwd does not say, or the image named it by numbers.
  char name[64], home[256];
};

struct config {
  // NAME=VALUE, ended by a null; those of a fork are added.
  char** env;
  char* cwd;
  struct user user;
};

extern struct config config;
void config_read(void);
// Sets NAME=VALUE in a list that ends in a null and was allocated.
char** env_set(char** env, const char* pair);

// Null, or what is wrong. `groups` is the caller's to free.
const char* user_of(const char* given, struct user* user);

// --- programs
// --------------------------------------------------------------------------------------------------------

// A grandchild in the background may hold the pipes long after the program ended: the answer does not wait
// for it.
#define LINGER_SECONDS 0.2
// A killed process normally goes at once; one that hangs in the kernel must not keep its caller waiting.
#define KILL_SECONDS 2.0

enum stage { STAGE_EXEC, STAGE_CWD, STAGE_USER };
struct failure {
  int number;
  enum stage stage;
};

struct spawn {
  // Point into the request, but for the list itself.
  char** args;
  char** env;
  const char* cwd;
  int fds[3];
  bool has_terminal;
  struct user user;
  uint64_t ident;
};

uint64_t new_ident(void);
// What a request says of a program; false when it was answered why not.
bool spawn_read(struct spawn* spawn, const struct json* request, struct caller caller);
void spawn_free(struct spawn* spawn);
// The program's pid; or -1, with the reason in `failure`.
pid_t spawn_program(const struct spawn* spawn, struct failure* failure);
void answer_spawn_failure(struct caller caller, struct failure failure, const struct spawn* spawn);
// Runs a program as root to its end, whoever the image's user is: its wait status, or -1 when it does not end
// in time or cannot be started.
int run_program(const char* path, char** env, double seconds);
void kill_tree(pid_t leader, uint64_t ident);

void exec_init(void);
void exec_start(struct caller caller, const struct json* request);
// Seconds until exec_tick has something to do; negative: never.
double exec_wait(void);
void exec_tick(void);
// False when it is none of these.
bool exec_exited(pid_t pid, int status);

// --- identity
// --------------------------------------------------------------------------------------------------------

void identity_init(void);
// Writes the reply; true when the copy has its identity.
bool identity_take(const struct json* request, struct text* reply);
// Null, or what is wrong.
const char* set_clock(const char* nanoseconds);

// --- streams (stream.c)
// ----------------------------------------------------------------------------------------------

// A frame of data is one buffer of the device with its header (32 KiB, drivers/char/virtio_console.c).
#define CHUNK (32 * 1024 - 13)
#define FROM_GUEST 1

struct stream;

struct stream_kind {
  void (*data)(struct stream* stream, const char* data, size_t length);
  void (*end)(struct stream* stream);
  // The host has granted more.
  void (*credit)(struct stream* stream);
  // Null, or why it cannot be done.
  const char* (*control)(struct stream* stream, const struct json* request);
  // The host wants no more of it; `stream->heard` is false when nobody will hear of it any more either.
  void (*close)(struct stream* stream);
  // Does some of what can be done at once; false when there is nothing.
  bool (*step)(struct stream* stream);
  // Its last moment, after `stream_finish`: what it has is given back, and itself freed.
  void (*free)(struct stream* stream);
};

struct stream {
  const struct stream_kind* kind;
  struct caller caller;
  // Bytes that the host takes at the moment.
  int64_t credit;
  size_t owed;
  bool heard, muted, finished;
  struct stream* next;
};

// False when it was answered why not: the request's window is wrong, or it did not come by the port.
bool stream_open(struct stream* stream, const struct stream_kind* kind, struct caller caller,
                 const struct json* request);
void stream_opened(struct stream* stream, const char* facts, size_t length);
// At most CHUNK bytes, and at most `credit`.
void stream_data(struct stream* stream, uint8_t channel, const char* data, size_t length);
void stream_end(struct stream* stream, uint8_t channel);
// So much of what the host sent is out of the way.
void stream_consumed(struct stream* stream, size_t bytes);
// The host takes no more data, but the reply.
void stream_mute(struct stream* stream);
// The reply. The stream is gone when the current event has been dealt with.
void stream_finish(struct stream* stream, const char* format, ...) __attribute__((format(printf, 2, 3)));
void stream_fail(struct stream* stream, const char* format, ...) __attribute__((format(printf, 2, 3)));
void stream_fail_errno(struct stream* stream, int number, const char* what);

// A frame of a stream. One whose stream is over is nobody's.
void streams_take(uint8_t type, uint32_t id, const char* payload, size_t length);
void streams_control(struct caller caller, const struct json* request);
// Nobody hears any of them from now on: the host hung up, or this machine is a copy.
void streams_drop(void);
// Does some work of each, frees what is over; true when there is more to do at once.
bool streams_step(void);

// False when the action is none of these.
bool streams_start(struct caller caller, const char* action, const struct json* request);

// --- ends (ends.c)
// ---------------------------------------------------------------------------------------------------

// Reads a descriptor while there is room.
struct source {
  struct watch watch;
  int fd;
  bool waits;
  // Bytes that are still wanted; -1 for all.
  int64_t left;
  void* owner;
  size_t (*room)(struct source* source);
  // Length 0 at the end: the descriptor is closed then.
  void (*give)(struct source* source, const char* data, size_t length);
};

void source_open(struct source* source, int fd, void* owner, size_t (*room)(struct source*),
                 void (*give)(struct source*, const char*, size_t));
void source_resume(struct source* source);
void source_close(struct source* source);

// Writes what comes, as fast as the descriptor takes it.
struct sink {
  struct watch watch;
  int fd;
  bool waits, ends;
  struct text queue;
  size_t sent;
  void* owner;
  void (*consumed)(struct sink* sink, size_t bytes);
  // After `sink_finish`, when all is written.
  void (*ended)(struct sink* sink);
};

void sink_open(struct sink* sink, int fd, void* owner, void (*consumed)(struct sink*, size_t),
               void (*ended)(struct sink*));
void sink_take(struct sink* sink, const char* data, size_t length);
void sink_finish(struct sink* sink);
void sink_close(struct sink* sink);

// --- what streams there are
// ------------------------------------------------------------------------------------------

void program_run(struct caller caller, const struct json* request);
void program_attach(struct caller caller, const struct json* request);
void program_list(struct caller caller);
void program_control(struct caller caller, const struct json* request);
bool program_exited(pid_t pid, int status);
// As exec_wait and exec_tick.
double program_wait(void);
void program_tick(void);

void connect_start(struct caller caller, const struct json* request);
void read_file_start(struct caller caller, const struct json* request);
void write_file_start(struct caller caller, const struct json* request);
void pack_start(struct caller caller, const struct json* request);
void unpack_start(struct caller caller, const struct json* request);
void watch_start(struct caller caller, const struct json* request);
double watch_wait(void);
void watch_tick(void);

// --- files (files.c)
// -------------------------------------------------------------------------------------------------

struct stat;

// False when it was answered that it is none.
bool path_of(struct caller caller, const struct json* request, const char** path);
void file_facts(struct text* text, const char* name, const struct stat* found);
const char* base_name(const char* path);
// Bits from 0 to 07777, `otherwise` when there are none; -1 when they are wrong.
int file_mode(const struct json* request, int otherwise);
// As `mkdir -p`; 0, or an errno.
int make_dirs(const char* path, mode_t mode);
int make_parents(const char* path);
bool write_whole(int fd, const char* data, size_t length);
// False when the action is none of these.
bool files_answer(struct caller caller, const char* action, const struct json* request);
