// The machine's part of a `fork`, for the agent in Python: from the request's text to new kernel entropy,
// clock, names and numpy words, in one call. Interpreted, it is the larger half of what a new copy does under
// emulation, where each piece of code that is run for the first time costs a microsecond: the emulator has to
// find it.
//
// It needs no library, so that any Python can load it (ctypes), with any libc. What it does not understand,
// or what fails, it leaves to the agent: the steps may run any number of times, and there each failure has a
// name.
#include <linux/random.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>

enum {
  ENTROPY_MIN = 32,
  ENTROPY_MAX = 256,
  // As the kernel's HOST_NAME_MAX.
  NAME_MAX_BYTES = 64,
  ID_BYTES = 32,
  BOOT_ID_BYTES = 36,
  // Of a Mersenne Twister.
  KEY_WORDS = 624,
};

enum { HOSTNAME, HOSTS, MACHINE_ID, BOOT_ID, FILES };

/** Set by the agent once (identity.py has the same layout). */
struct terms {
  int32_t random_fd;
  int32_t file_fds[FILES];
  /** numpy's state, 624 words and the position in them; 0: leave it alone. */
  uint64_t words;
};

/** What the agent needs for its own generators. */
struct taken {
  uint8_t seeds[48];
  char boot_id[BOOT_ID_BYTES];
};

struct text {
  const char* at;
  size_t length;
};

struct request {
  uint8_t entropy[ENTROPY_MAX];
  size_t entropy_bytes;
  struct text hostname;
  struct text machine_id;
  uint64_t clock_ns;
};

#define EXPORT __attribute__((visibility("default")))

// The compiler calls these for copies and clearing, whatever it is told. Eight bytes at a time: an emulator
// runs each step of a `rep` as one turn of a loop.
void* memcpy(void* restrict to, const void* restrict from, size_t bytes) {
  void* const start = to;
  size_t words = bytes / 8;
  bytes %= 8;
  __asm__ volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(words) : : "memory");
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
  return start;
}

void* memset(void* to, int byte, size_t bytes) {
  void* const start = to;
  size_t words = bytes / 8;
  bytes %= 8;
  const uint64_t word = 0x0101010101010101 * (uint8_t)byte;
  __asm__ volatile("rep stosq" : "+D"(to), "+c"(words) : "a"(word) : "memory");
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(byte) : "memory");
  return start;
}

static long call(long number, long a, long b, long c, long d) {
  register long fourth __asm__("r10") = d;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(fourth)
                   : "rcx", "r11", "memory");
  return result;
}

// --- the request: a flat JSON object as the host writes it, without escapes or blanks
// ---------------------------------

static bool is(struct text text, const char* word) {
  size_t i = 0;
  for (; i < text.length && word[i] != '\0'; i++)
    if (text.at[i] != word[i]) return false;
  return i == text.length && word[i] == '\0';
}

/** Leaves `at` behind the closing quote. */
static bool read_string(const char** at, const char* end, struct text* into) {
  if (*at == end || *(*at)++ != '"') return false;
  into->at = *at;
  for (; *at < end && **at != '"'; (*at)++)
    if (**at == '\\' || (unsigned char)**at < ' ') return false;
  if (*at == end) return false;
  into->length = (size_t)((*at)++ - into->at);
  return true;
}

static bool read_number(const char** at, const char* end, struct text* into) {
  into->at = *at;
  while (*at < end && **at >= '0' && **at <= '9') (*at)++;
  into->length = (size_t)(*at - into->at);
  return into->length > 0;
}

static bool number_of(struct text text, uint64_t* into) {
  // Nineteen digits fit 64 bits.
  if (text.length == 0 || text.length > 19) return false;
  *into = 0;
  for (size_t i = 0; i < text.length; i++) {
    if (text.at[i] < '0' || text.at[i] > '9') return false;
    *into = *into * 10 + (uint64_t)(text.at[i] - '0');
  }
  return true;
}

static int digit_of(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  return c == '+' ? 62 : c == '/' ? 63 : -1;
}

/** Base64, RFC 4648 section 4. */
static bool read_entropy(struct text text, struct request* request) {
  uint32_t held = 0;
  int bits = 0;
  size_t bytes = 0;
  while (text.length > 0 && text.at[text.length - 1] == '=') text.length--;
  for (size_t i = 0; i < text.length; i++) {
    const int digit = digit_of(text.at[i]);
    if (digit < 0 || bytes == ENTROPY_MAX) return false;
    held = held << 6 | (uint32_t)digit;
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    request->entropy[bytes++] = (uint8_t)(held >> bits);
  }
  request->entropy_bytes = bytes;
  return bytes >= ENTROPY_MIN;
}

static bool is_id(struct text text) {
  if (text.length != ID_BYTES) return false;
  for (size_t i = 0; i < text.length; i++) {
    const char c = text.at[i];
    if (!((c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'))) return false;
  }
  return true;
}

static bool take_field(struct text key, struct text value, struct request* request) {
  if (is(key, "action")) return is(value, "fork");
  if (is(key, "index")) return true;
  if (is(key, "entropy")) return read_entropy(value, request);
  if (is(key, "clock_ns")) return number_of(value, &request->clock_ns);
  if (is(key, "hostname")) {
    request->hostname = value;
    return value.length > 0 && value.length <= NAME_MAX_BYTES;
  }
  if (is(key, "machine_id")) {
    request->machine_id = value;
    return is_id(value);
  }
  return false;
}

static bool parse(const char* at, const char* end, struct request* request) {
  if (at == end || *at++ != '{') return false;
  for (;;) {
    struct text key, value;
    if (!read_string(&at, end, &key) || at == end || *at++ != ':' || at == end) return false;
    if (!(*at == '"' ? read_string(&at, end, &value) : read_number(&at, end, &value))) return false;
    if (!take_field(key, value, request) || at == end) return false;
    const char next = *at++;
    if (next == '}') break;
    if (next != ',') return false;
  }
  return at == end && request->entropy_bytes > 0 && request->hostname.length > 0 &&
         request->machine_id.length > 0 && request->clock_ns > 0;
}

// --- the steps
// --------------------------------------------------------------------------------------------------------

static bool reseed_kernel(int fd, const struct request* request) {
  struct {
    struct rand_pool_info info;
    uint8_t room[ENTROPY_MAX];
  } pool;
  pool.info.entropy_count = (int)request->entropy_bytes * 8;
  pool.info.buf_size = (int)request->entropy_bytes;
  memcpy(pool.info.buf, request->entropy, request->entropy_bytes);
  // Mixed in is not yet in use: without the second the next numbers still come from the parent's key.
  return call(SYS_ioctl, fd, RNDADDENTROPY, (long)&pool, 0) == 0 &&
         call(SYS_ioctl, fd, RNDRESEEDCRNG, 0, 0) == 0;
}

static bool set_clock(uint64_t ns) {
  const struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
  return call(SYS_clock_settime, CLOCK_REALTIME, (long)&time, 0, 0) == 0;
}

/** One part after another, then cut to what was written; a file keeps its length among children with names of
 * one length. */
static int32_t lengths[FILES];

static bool write_file(const struct terms* terms, int which, const struct text* parts, int count) {
  char data[192];
  size_t length = 0;
  for (int i = 0; i < count; i++) {
    if (length + parts[i].length > sizeof data) return false;
    memcpy(data + length, parts[i].at, parts[i].length);
    length += parts[i].length;
  }
  const int fd = terms->file_fds[which];
  if (call(SYS_pwrite64, fd, (long)data, (long)length, 0) != (long)length) return false;
  if (lengths[which] == (int32_t)length) return true;
  if (call(SYS_ftruncate, fd, (long)length, 0, 0) != 0) return false;
  lengths[which] = (int32_t)length;
  return true;
}

#define TEXT(literal) \
  { literal, sizeof literal - 1 }

static bool take_names(const struct terms* terms, const struct request* request, const char* boot_id) {
  const struct text newline = TEXT("\n");
  const struct text name[] = {request->hostname, newline};
  // So that a program that resolves its own name does not ask a name server.
  const struct text hosts[] = {TEXT("127.0.0.1 localhost "), request->hostname,
                               TEXT("\n::1 localhost ip6-localhost ip6-loopback\n")};
  const struct text machine[] = {request->machine_id, newline};
  const struct text boot[] = {{boot_id, BOOT_ID_BYTES}, newline};
  return call(SYS_sethostname, (long)request->hostname.at, (long)request->hostname.length, 0, 0) == 0 &&
         write_file(terms, HOSTNAME, name, 2) && write_file(terms, HOSTS, hosts, 3) &&
         write_file(terms, MACHINE_ID, machine, 2) && write_file(terms, BOOT_ID, boot, 2);
}

/** A random UUID, RFC 4122 section 4.4. */
static void write_uuid(uint8_t bytes[16], char* into) {
  bytes[6] = (bytes[6] & 0x0F) | 0x40;
  bytes[8] = (bytes[8] & 0x3F) | 0x80;
  for (int i = 0; i < 16; i++) {
    if (i == 4 || i == 6 || i == 8 || i == 10) *into++ = '-';
    *into++ = "0123456789abcdef"[bytes[i] >> 4];
    *into++ = "0123456789abcdef"[bytes[i] & 15];
  }
}

static struct terms terms_;

EXPORT void forkd_take_terms(const struct terms* terms) {
  terms_ = *terms;
  for (int i = 0; i < FILES; i++) lengths[i] = -1;
}

/** Someone else has written the files: their lengths are not known any more. */
EXPORT void forkd_take_forget(void) {
  for (int i = 0; i < FILES; i++) lengths[i] = -1;
}

/** 0 when everything is done; 1 when the agent has to do it, from the first step on. */
EXPORT int forkd_take(const char* text, size_t length, struct taken* taken) {
  struct request request = {0};
  struct {
    uint8_t seeds[sizeof taken->seeds];
    uint8_t boot[16];
    uint32_t words[KEY_WORDS];
  } random;
  if (!parse(text, text + length, &request) || !reseed_kernel(terms_.random_fd, &request)) return 1;
  if (call(SYS_getrandom, (long)&random, sizeof random, 0, 0) != sizeof random) return 1;
  write_uuid(random.boot, taken->boot_id);
  if (!set_clock(request.clock_ns) || !take_names(&terms_, &request, taken->boot_id)) return 1;
  memcpy(taken->seeds, random.seeds, sizeof random.seeds);
  if (terms_.words == 0) return 0;
  uint32_t* const words = (uint32_t*)terms_.words;
  memcpy(words, random.words, sizeof random.words);
  // All are used up: the next number makes new ones.
  words[KEY_WORDS] = KEY_WORDS;
  return 0;
}
