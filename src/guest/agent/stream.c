// Streams that are open. Each direction of each has a window: who sends may have so many bytes under way that
// the other side has not taken yet (docs/reference/agent-protocol.md draws the frames).
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"

// Bytes that the host may send ahead; a part of the protocol.
#define INPUT_WINDOW (256 * 1024)
// So many bytes taken are granted again at once.
#define GRANT (INPUT_WINDOW / 4)
// When a request names none.
#define OUTPUT_WINDOW (256 * 1024)

enum { HELLO, REQUEST, REPLY, OPENED, DATA, CREDIT, END };

static struct stream* streams;

bool stream_open(struct stream* stream, const struct stream_kind* kind, struct caller caller,
                 const struct json* request) {
  const struct json* window = json_get(request, "window");
  if (caller.connection) {
    answer_error(caller, "ValueError: %.40s needs the framed port", json_text(request, "action"));
    return false;
  }
  if (window && (window->kind != JSON_NUMBER || window->number < 1 || window->number > 1e15)) {
    answer_error(caller, "ValueError: window must be a positive whole number");
    return false;
  }
  stream->kind = kind;
  stream->caller = caller;
  stream->credit = window ? (int64_t)window->number : OUTPUT_WINDOW;
  stream->heard = true;
  stream->next = streams;
  streams = stream;
  return true;
}

void stream_opened(struct stream* stream, const char* facts, size_t length) {
  if (stream->heard) port_send(OPENED, stream->caller.id, facts, length);
}

void stream_data(struct stream* stream, uint8_t channel, const char* data, size_t length) {
  if (stream->muted) return;
  stream->credit -= (int64_t)length;
  if (stream->heard) port_send_data(stream->caller.id, channel, data, length);
}

void stream_end(struct stream* stream, uint8_t channel) {
  if (stream->heard && !stream->muted) port_send(END, stream->caller.id, (char*)&channel, 1);
}

void stream_consumed(struct stream* stream, size_t bytes) {
  stream->owed += bytes;
  if (stream->owed < GRANT) return;
  char count[4];
  for (int i = 0; i < 4; i++) count[i] = (char)(stream->owed >> 8 * i);
  stream->owed = 0;
  if (stream->heard) port_send(CREDIT, stream->caller.id, count, sizeof count);
}

void stream_mute(struct stream* stream) {
  stream->muted = true;
  stream->credit = INT64_MAX / 2;
}

static void finish(struct stream* stream, const char* body, size_t length) {
  if (stream->finished) return;
  stream->finished = true;
  if (stream->heard) answer(stream->caller, body, length);
}

void stream_finish(struct stream* stream, const char* format, ...) {
  char body[512];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(body, sizeof body, format, arguments);
  va_end(arguments);
  finish(stream, body, (size_t)length < sizeof body ? (size_t)length : sizeof body - 1);
}

static void fail(struct stream* stream, const struct text* message) {
  struct text body = {0};
  text_add(&body, "{\"error\": ", 10);
  json_quote(&body, message->data, message->length);
  text_add(&body, ", \"exit_code\": 1}", 17);
  finish(stream, body.data, body.length);
  text_free(&body);
}

void stream_fail(struct stream* stream, const char* format, ...) {
  char line[512];
  struct text message = {0};
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  text_add(&message, line, strlen(line));
  fail(stream, &message);
  text_free(&message);
}

void stream_fail_errno(struct stream* stream, int number, const char* what) {
  struct text message = {0};
  errno_text(&message, number, what);
  fail(stream, &message);
  text_free(&message);
}

static struct stream* find(uint32_t id) {
  struct stream* stream = streams;
  while (stream && (stream->finished || !stream->heard || stream->caller.id != id)) stream = stream->next;
  return stream;
}

void streams_take(uint8_t type, uint32_t id, const char* payload, size_t length) {
  struct stream* stream = find(id);
  if (!stream || length == 0) return;
  if (type == DATA) {
    stream->kind->data(stream, payload + 1, length - 1);
  } else if (type == END) {
    stream->kind->end(stream);
  } else if (length >= 4) {
    uint32_t count = 0;
    for (int i = 0; i < 4; i++) count |= (uint32_t)(unsigned char)payload[i] << 8 * i;
    if (!stream->muted) stream->credit += count;
    stream->kind->credit(stream);
  }
}

void streams_control(struct caller caller, const struct json* request) {
  const struct json *number = json_get(request, "stream"), *close = json_get(request, "close");
  if (!number || number->kind != JSON_NUMBER) {
    answer_error(caller, "KeyError: 'stream'");
    return;
  }
  struct stream* stream = find((uint32_t)number->number);
  const char* reason = NULL;
  if (!stream)
    reason = "LookupError: no such stream, or it is over";
  else if (close && close->kind == JSON_TRUE)
    stream->kind->close(stream);
  else if (!stream->kind->control)
    reason = "ValueError: this stream takes no such control";
  else
    reason = stream->kind->control(stream, request);
  if (reason)
    answer_error(caller, "%s", reason);
  else
    answer(caller, "{\"exit_code\": 0}", strlen("{\"exit_code\": 0}"));
}

void streams_drop(void) {
  for (struct stream* stream = streams; stream; stream = stream->next) {
    if (!stream->heard) continue;
    stream->heard = false;
    if (!stream->finished) stream->kind->close(stream);
  }
}

bool streams_step(void) {
  bool busy = false;
  for (struct stream** link = &streams; *link;) {
    struct stream* stream = *link;
    if (!stream->finished && stream->kind->step && stream->kind->step(stream)) busy = true;
    if (!stream->finished) {
      link = &stream->next;
      continue;
    }
    *link = stream->next;
    stream->kind->free(stream);
  }
  return busy;
}

bool streams_start(struct caller caller, const char* action, const struct json* request) {
  static const struct {
    const char* action;
    void (*start)(struct caller, const struct json*);
  } kinds[] = {
      {"run", program_run},           {"attach", program_attach},       {"connect", connect_start},
      {"read_file", read_file_start}, {"write_file", write_file_start}, {"pack", pack_start},
      {"unpack", unpack_start},       {"watch", watch_start},
  };
  if (strcmp(action, "control") == 0) {
    if (json_get(request, "run"))
      program_control(caller, request);
    else
      streams_control(caller, request);
    return true;
  }
  if (strcmp(action, "runs") == 0) {
    program_list(caller);
    return true;
  }
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    if (strcmp(action, kinds[i].action) != 0) continue;
    kinds[i].start(caller, request);
    return true;
  }
  return false;
}
