// The `fork` action. The steps are those of the Python agent, less what only Python has.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define OWN "/run/forkd/identity/"
#define HOOKS "/etc/forkd/fork.d"
#define HOOK_SECONDS 10
#define ENTROPY_MIN 32
#define ENTROPY_MAX 512

static int random_fd;

void identity_init(void) {
  random_fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
  mkdir("/run/forkd", 0755);
  mkdir("/run/forkd/identity", 0755);
}

// Bytes decoded; -1 when it is not base64 or does not fit.
static int decode_base64(const char* text, unsigned char* into, int max) {
  static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  int bytes = 0, bits = 0;
  uint32_t held = 0;
  for (; *text && *text != '='; text++) {
    const char* digit = strchr(digits, *text);
    if (!digit) return -1;
    held = held << 6 | (uint32_t)(digit - digits);
    bits += 6;
    if (bits < 8) continue;
    bits -= 8;
    if (bytes == max) return -1;
    into[bytes++] = (unsigned char)(held >> bits);
  }
  return bytes;
}

static const char* reseed_kernel(const unsigned char* entropy, int bytes) {
  union {
    struct rand_pool_info info;
    char room[sizeof(struct rand_pool_info) + ENTROPY_MAX];
  } pool;
  pool.info.entropy_count = bytes * 8;
  pool.info.buf_size = bytes;
  memcpy(pool.info.buf, entropy, (size_t)bytes);
  // Mixed in is not yet in use: without the second the next numbers still come from the parent's key.
  if (ioctl(random_fd, RNDADDENTROPY, &pool) < 0 || ioctl(random_fd, RNDRESEEDCRNG, NULL) < 0)
    return strerror(errno);
  return NULL;
}

const char* set_clock(const char* nanoseconds) {
  char* end;
  errno = 0;
  unsigned long long ns = nanoseconds ? strtoull(nanoseconds, &end, 10) : 0;
  if (!nanoseconds || errno || end == nanoseconds || *end) return "ValueError: clock_ns is not a number";
  struct timespec time = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
  return clock_settime(CLOCK_REALTIME, &time) < 0 ? strerror(errno) : NULL;
}

// init put these in RAM and mounted them over their public names.
static const char* write_own(const char* name, const char* text) {
  char path[128];
  snprintf(path, sizeof path, OWN "%s", name);
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
  size_t length = strlen(text);
  bool good = fd >= 0 && pwrite(fd, text, length, 0) == (ssize_t)length && ftruncate(fd, (off_t)length) == 0;
  const char* problem = good ? NULL : strerror(errno);
  if (fd >= 0) close(fd);
  return problem;
}

static const char* set_hostname(const char* name) {
  char text[256];
  if (!name || strlen(name) > 64) return "no hostname";
  if (sethostname(name, strlen(name)) < 0) return strerror(errno);
  snprintf(text, sizeof text, "%s\n", name);
  const char* problem = write_own("hostname", text);
  snprintf(text, sizeof text, "127.0.0.1 localhost %s\n::1 localhost ip6-localhost ip6-loopback\n", name);
  return problem ? problem : write_own("hosts", text);
}

static const char* set_machine_id(const char* id) {
  char text[40];
  if (!id || strlen(id) != 32 || strspn(id, "0123456789abcdef") != 32)
    return "machine_id must be 32 lower-case hex digits";
  snprintf(text, sizeof text, "%s\n", id);
  return write_own("machine-id", text);
}

static const char* make_boot_id(char id[40]) {
  unsigned char b[16];
  if (getrandom(b, sizeof b, 0) != sizeof b) return strerror(errno);
  b[6] = (b[6] & 0x0F) | 0x40;
  b[8] = (b[8] & 0x3F) | 0x80;
  snprintf(id, 40, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x\n", b[0], b[1], b[2],
           b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
  const char* problem = write_own("boot_id", id);
  id[36] = 0;
  return problem;
}

static int is_hook(const struct dirent* entry) {
  char path[320];
  struct stat stat_;
  snprintf(path, sizeof path, HOOKS "/%s", entry->d_name);
  return entry->d_name[0] != '.' && stat(path, &stat_) == 0 && S_ISREG(stat_.st_mode) &&
         access(path, X_OK) == 0;
}

// How many hooks were run; a problem is written to `problem`.
static int run_hooks(const struct json* request, const char* boot_id, char problem[400]) {
  static const char* const names[][2] = {{"FORKD_HOSTNAME", "hostname"}, {"FORKD_MACHINE_ID", "machine_id"}};
  struct dirent** found = NULL;
  int count = scandir(HOOKS, &found, is_hook, alphasort), run = 0;
  char **env = NULL, pair[160];
  for (char** one = config.env; count > 0 && one && *one; one++) env = env_set(env, *one);
  for (int i = 0; count > 0 && i < 2; i++) {
    snprintf(pair, sizeof pair, "%s=%.64s", names[i][0], json_text(request, names[i][1]));
    env = env_set(env, pair);
  }
  if (count > 0) {
    const struct json* index = json_get(request, "index");
    snprintf(pair, sizeof pair, "FORKD_INDEX=%.0f", index ? index->number : 0);
    env = env_set(env, pair);
    snprintf(pair, sizeof pair, "FORKD_BOOT_ID=%s", boot_id);
    env = env_set(env, pair);
  }
  for (int i = 0; i < count; i++) {
    char path[320];
    snprintf(path, sizeof path, HOOKS "/%s", found[i]->d_name);
    int status = *problem ? 0 : run_program(path, env, HOOK_SECONDS);
    if (status != 0)
      snprintf(problem, 400, "%s did not end well (%d)", path, status < 0 ? status : WEXITSTATUS(status));
    free(found[i]);
    run++;
  }
  free(found);
  for (char** one = env; one && *one; one++) free(*one);
  free(env);
  return run;
}

// Adds the environment for all that is run from now on; false when none was given.
static bool add_env(const struct json* request) {
  const struct json* env = json_get(request, "env");
  bool any = false;
  for (const struct json* one = env && env->kind == JSON_OBJECT ? env->first : NULL; one; one = one->next) {
    struct text pair = {0};
    if (one->kind != JSON_STRING) continue;
    text_add(&pair, one->name, strlen(one->name));
    text_add(&pair, "=", 1);
    text_add(&pair, one->string, one->length);
    config.env = env_set(config.env, pair.data);
    text_free(&pair);
    any = true;
  }
  return any;
}

struct receipt {
  struct text done, skipped, failed;
};

static void note(struct text* list, const char* name, const char* reason) {
  if (list->length > 0) text_add(list, ", ", 2);
  json_quote(list, name, strlen(name));
  if (!reason) return;
  text_add(list, ": ", 2);
  json_quote(list, reason, strlen(reason));
}

static void step(struct receipt* receipt, const char* name, const char* problem) {
  if (problem)
    note(&receipt->failed, name, problem);
  else
    note(&receipt->done, name, NULL);
}

bool identity_take(const struct json* request, struct text* reply) {
  static const char* const absent[] = {"python_random", "numpy_random", "uuid",
                                       "openssl",       "tempfile",     "node"};
  struct receipt receipt = {0};
  unsigned char entropy[ENTROPY_MAX];
  char boot_id[40] = "", problem[400] = "";
  const char* given = json_text(request, "entropy");
  int bytes = given ? decode_base64(given, entropy, ENTROPY_MAX) : -1;
  step(&receipt, "kernel_rng",
       bytes < ENTROPY_MIN ? "entropy must be at least 32 bytes" : reseed_kernel(entropy, bytes));
  step(&receipt, "clock", set_clock(json_text(request, "clock_ns")));
  step(&receipt, "hostname", set_hostname(json_text(request, "hostname")));
  step(&receipt, "machine_id", set_machine_id(json_text(request, "machine_id")));
  // After the reseed, whose numbers it uses.
  step(&receipt, "boot_id", make_boot_id(boot_id));
  note(&receipt.skipped, "mac",
       access("/sys/class/net/eth0", F_OK) != 0
           ? "no network card"
           : "the card keeps its address: every copy is alone on its segment");
  for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
    note(&receipt.skipped, absent[i], "this guest has no Python");
  if (add_env(request))
    step(&receipt, "env", NULL);
  else
    note(&receipt.skipped, "env", "none given");
  if (receipt.failed.length > 0)
    note(&receipt.skipped, "hooks", "a step before failed");
  else if (run_hooks(request, boot_id, problem) == 0)
    note(&receipt.skipped, "hooks", "no executables in " HOOKS);
  else
    step(&receipt, "hooks", *problem ? problem : NULL);

  bool good = receipt.failed.length == 0;
  text_addf(reply, "{\"receipt\": {\"generation\": %d, \"done\": [", GENERATION);
  text_add(reply, receipt.done.data ? receipt.done.data : "", receipt.done.length);
  text_addf(reply, "], \"skipped\": {");
  text_add(reply, receipt.skipped.data ? receipt.skipped.data : "", receipt.skipped.length);
  text_addf(reply, "}, \"failed\": {");
  text_add(reply, receipt.failed.data ? receipt.failed.data : "", receipt.failed.length);
  text_addf(reply, "}, \"boot_id\": \"%s\"}, \"exit_code\": %d", boot_id, good ? 0 : 1);
  if (!good) text_addf(reply, ", \"error\": \"IdentityFailed: see the receipt\"");
  text_addf(reply, "}");
  text_free(&receipt.done);
  text_free(&receipt.skipped);
  text_free(&receipt.failed);
  return good;
}
