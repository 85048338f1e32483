// The agent for guests without Python: one static program, no library but libc, one thread. It speaks the
// protocol of docs/reference/agent-protocol.md: ping, exec, seal, fork, clock; eval is refused.
//
//   main.c      start, the loop that waits, answers
//   port.c      the virtio-serial port: frames
//   tcp.c       TCP 8888: a line a connection
//   json.c      reading a request, writing a reply
//   exec.c      programs: output, exit, timeout
//   kill.c      ending a program with all that it started
//   identity.c  what makes a copy its own machine
//   config.c    what the image says: environment, directory, user
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define GENERATION 1

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
void handle_request(struct caller caller, const char* data, size_t length);

// --- ways in
// ---------------------------------------------------------------------------------------------------------

// False when there is no port.
bool port_open(void);
void port_send(uint8_t type, uint32_t id, const char* payload, size_t length);
void tcp_open(void);
void tcp_answer(uint64_t connection, const char* body, size_t length);

// --- the image (config.c)
// --------------------------------------------------------------------------------------------

struct config {
  // NAME=VALUE, ended by a null; those of a fork are added.
  char** env;
  char* cwd;
  bool has_user;
  uid_t uid;
  gid_t gid;
  gid_t* groups;
  size_t group_count;
};

extern struct config config;
void config_read(void);
// Sets NAME=VALUE in a list that ends in a null and was allocated.
char** env_set(char** env, const char* pair);

// --- actions
// ---------------------------------------------------------------------------------------------------------

void exec_init(void);
void exec_start(struct caller caller, const struct json* request);
// Seconds until exec_tick has something to do; negative: never.
double exec_wait(void);
void exec_tick(void);
// After SIGCHLD.
void exec_reap(void);
// Runs a program to its end: its wait status, or -1 when it does not end in time or cannot be started.
int run_program(const char* path, char** env, double seconds);

void kill_tree(pid_t leader, uint64_t ident);

void identity_init(void);
// Writes the reply; true when the copy has its identity.
bool identity_take(const struct json* request, struct text* reply);
// Null, or what is wrong.
const char* set_clock(const char* nanoseconds);
