#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent.h"

// A request is an object of texts and lists of texts; deeper ones are somebody's mistake.
#define DEPTH_MAX 32

static void* must(void* memory) {
  // Without memory there is nothing to answer with: the VM ends, and its console says why.
  if (!memory) {
    logf_("out of memory");
    abort();
  }
  return memory;
}

void text_add(struct text* text, const void* data, size_t length) {
  if (text->length + length + 1 > text->capacity) {
    text->capacity = (text->length + length + 1) * 2;
    text->data = must(realloc(text->data, text->capacity));
  }
  memcpy(text->data + text->length, data, length);
  text->length += length;
  text->data[text->length] = 0;
}

void text_addf(struct text* text, const char* format, ...) {
  char line[1024];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  if (length > 0) text_add(text, line, (size_t)length < sizeof line ? (size_t)length : sizeof line - 1);
}

void text_free(struct text* text) {
  free(text->data);
  memset(text, 0, sizeof *text);
}

// --- reading
// ---------------------------------------------------------------------------------------------------------

struct parser {
  const char *at, *end;
  int depth;
};

static struct json* parse_value(struct parser* p);

static void skip_space(struct parser* p) {
  while (p->at < p->end && (*p->at == ' ' || *p->at == '\t' || *p->at == '\n' || *p->at == '\r')) p->at++;
}

static bool take(struct parser* p, const char* word) {
  size_t length = strlen(word);
  if ((size_t)(p->end - p->at) < length || memcmp(p->at, word, length) != 0) return false;
  p->at += length;
  return true;
}

static int hex4(struct parser* p) {
  if (p->end - p->at < 4) return -1;
  int value = 0;
  for (int i = 0; i < 4; i++) {
    char c = *p->at++;
    if (!isxdigit((unsigned char)c)) return -1;
    value = value * 16 + (isdigit((unsigned char)c) ? c - '0' : (c | 0x20) - 'a' + 10);
  }
  return value;
}

static void add_utf8(struct text* text, uint32_t code) {
  char bytes[4];
  size_t n = 0;
  if (code < 0x80) {
    bytes[n++] = (char)code;
  } else if (code < 0x800) {
    bytes[n++] = (char)(0xC0 | code >> 6);
    bytes[n++] = (char)(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    bytes[n++] = (char)(0xE0 | code >> 12);
    bytes[n++] = (char)(0x80 | (code >> 6 & 0x3F));
    bytes[n++] = (char)(0x80 | (code & 0x3F));
  } else {
    bytes[n++] = (char)(0xF0 | code >> 18);
    bytes[n++] = (char)(0x80 | (code >> 12 & 0x3F));
    bytes[n++] = (char)(0x80 | (code >> 6 & 0x3F));
    bytes[n++] = (char)(0x80 | (code & 0x3F));
  }
  text_add(text, bytes, n);
}

static bool parse_escape(struct parser* p, struct text* text) {
  static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
  if (p->at == p->end) return false;
  char c = *p->at++;
  const char* plain = memchr(from, c, sizeof from - 1);
  if (plain) {
    text_add(text, &to[plain - from], 1);
    return true;
  }
  if (c != 'u') return false;
  int code = hex4(p);
  if (code < 0) return false;
  if (code >= 0xD800 && code < 0xDC00 && take(p, "\\u")) {
    int low = hex4(p);
    if (low < 0xDC00 || low > 0xDFFF) return false;
    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
  }
  // Half of a pair: Python's way to carry a byte that is no UTF-8.
  if (code >= 0xDC80 && code <= 0xDCFF) {
    char byte = (char)(code - 0xDC00);
    text_add(text, &byte, 1);
  } else {
    add_utf8(text, (uint32_t)code);
  }
  return true;
}

// Behind the opening quote. Null when it is wrong.
static char* parse_string(struct parser* p, size_t* length) {
  struct text text = {0};
  text_add(&text, "", 0);
  while (p->at < p->end) {
    const char* run = p->at;
    while (p->at < p->end && *p->at != '"' && *p->at != '\\' && (unsigned char)*p->at >= 0x20) p->at++;
    text_add(&text, run, (size_t)(p->at - run));
    if (p->at == p->end) break;
    char c = *p->at++;
    if (c == '"') {
      *length = text.length;
      return text.data;
    }
    if (c != '\\' || !parse_escape(p, &text)) break;
  }
  text_free(&text);
  return NULL;
}

static bool parse_members(struct parser* p, struct json* value, char close) {
  struct json** link = &value->first;
  skip_space(p);
  if (p->at < p->end && *p->at == close) {
    p->at++;
    return true;
  }
  for (;;) {
    char* name = NULL;
    if (close == '}') {
      size_t length;
      skip_space(p);
      if (!take(p, "\"") || !(name = parse_string(p, &length))) return false;
      skip_space(p);
      if (!take(p, ":")) {
        free(name);
        return false;
      }
    }
    struct json* member = parse_value(p);
    if (!member) {
      free(name);
      return false;
    }
    member->name = name;
    *link = member;
    link = &member->next;
    skip_space(p);
    if (p->at == p->end) return false;
    char c = *p->at++;
    if (c == close) return true;
    if (c != ',') return false;
  }
}

static bool parse_number(struct parser* p, struct json* value) {
  char digits[64];
  size_t n = 0;
  while (p->at < p->end && n + 1 < sizeof digits && strchr("+-.eE0123456789", *p->at) && *p->at)
    digits[n++] = *p->at++;
  digits[n] = 0;
  char* end;
  value->kind = JSON_NUMBER;
  value->number = strtod(digits, &end);
  return n > 0 && *end == 0;
}

static struct json* parse_value(struct parser* p) {
  struct json* value = must(calloc(1, sizeof *value));
  skip_space(p);
  bool good = ++p->depth <= DEPTH_MAX && p->at < p->end;
  if (!good) {
  } else if (take(p, "\"")) {
    value->kind = JSON_STRING;
    good = (value->string = parse_string(p, &value->length)) != NULL;
  } else if (take(p, "{")) {
    value->kind = JSON_OBJECT;
    good = parse_members(p, value, '}');
  } else if (take(p, "[")) {
    value->kind = JSON_ARRAY;
    good = parse_members(p, value, ']');
  } else if (take(p, "true")) {
    value->kind = JSON_TRUE;
  } else if (take(p, "false")) {
    value->kind = JSON_FALSE;
  } else if (take(p, "null")) {
    value->kind = JSON_NULL;
  } else {
    good = parse_number(p, value);
  }
  p->depth--;
  if (good) return value;
  json_free(value);
  return NULL;
}

struct json* json_parse(const char* data, size_t length) {
  struct parser p = {data, data + length, 0};
  struct json* value = parse_value(&p);
  skip_space(&p);
  if (value && p.at != p.end) {
    json_free(value);
    return NULL;
  }
  return value;
}

void json_free(struct json* value) {
  while (value) {
    struct json* next = value->next;
    json_free(value->first);
    free(value->string);
    free(value->name);
    free(value);
    value = next;
  }
}

const struct json* json_get(const struct json* object, const char* name) {
  if (!object || object->kind != JSON_OBJECT) return NULL;
  for (const struct json* member = object->first; member; member = member->next)
    if (strcmp(member->name, name) == 0) return member;
  return NULL;
}

const char* json_text(const struct json* object, const char* name) {
  const struct json* value = json_get(object, name);
  return value && value->kind == JSON_STRING && strlen(value->string) == value->length ? value->string : NULL;
}

// --- writing
// ---------------------------------------------------------------------------------------------------------

// Bytes of the character at `at`, 0 when it is no UTF-8.
static size_t utf8_length(const unsigned char* at, size_t left) {
  size_t n = at[0] < 0x80                    ? 1
             : at[0] >= 0xC2 && at[0] < 0xE0 ? 2
             : (at[0] & 0xF0) == 0xE0        ? 3
             : at[0] >= 0xF0 && at[0] < 0xF5 ? 4
                                             : 0;
  if (n == 0 || n > left) return 0;
  for (size_t i = 1; i < n; i++)
    if ((at[i] & 0xC0) != 0x80) return 0;
  // Overlong forms, halves of pairs, and what is beyond Unicode.
  if (n == 3 && ((at[0] == 0xE0 && at[1] < 0xA0) || (at[0] == 0xED && at[1] > 0x9F))) return 0;
  if (n == 4 && ((at[0] == 0xF0 && at[1] < 0x90) || (at[0] == 0xF4 && at[1] > 0x8F))) return 0;
  return n;
}

static void quote(struct text* text, const char* data, size_t length, bool is_name) {
  const unsigned char *at = (const unsigned char*)data, *end = at + length;
  text_add(text, "\"", 1);
  while (at < end) {
    const unsigned char* run = at;
    while (at < end && *at >= 0x20 && *at < 0x7F && *at != '"' && *at != '\\') at++;
    text_add(text, run, (size_t)(at - run));
    if (at == end) break;
    size_t n = utf8_length(at, (size_t)(end - at));
    if (n > 1) {
      text_add(text, at, n);
      at += n;
    } else if (n == 0 && is_name) {
      text_addf(text, "\\udc%02x", *at++);
    } else if (n == 0) {
      text_add(text, "\xEF\xBF\xBD", 3);
      at++;
    } else if (*at == '\n') {
      text_add(text, "\\n", 2);
      at++;
    } else {
      text_addf(text, "\\u%04x", *at++);
    }
  }
  text_add(text, "\"", 1);
}

void json_quote(struct text* text, const char* data, size_t length) {
  quote(text, data, length, false);
}

void json_quote_name(struct text* text, const char* name) {
  quote(text, name, strlen(name), true);
}
