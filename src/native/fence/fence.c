// Preloaded into a QEMU whose guest reaches the network through it (`-netdev user`, libslirp): the guest must
// not reach what listens on this host's loopback, which it would otherwise find at 10.0.2.2. QEMU has no
// option for that.
//
// FORKD_FENCE names what may be reached all the same, as `ADDRESS:PORT` with commas between: the host's
// resolver and its proxy.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { ALLOWED_MAX = 16 };

struct place {
  // Network order, as sockets have them; IPv4 as it is mapped into IPv6.
  struct in6_addr address;
  uint16_t port;
};

static struct place allowed[ALLOWED_MAX];
static int allowed_count;

static struct in6_addr mapped(struct in_addr address) {
  struct in6_addr result = {.s6_addr = {[10] = 0xff, [11] = 0xff}};
  memcpy(&result.s6_addr[12], &address, sizeof address);
  return result;
}

__attribute__((constructor)) static void start(void) {
  const char* text = getenv("FORKD_FENCE");
  char list[1024];
  unsetenv("LD_PRELOAD");
  if (text == NULL || strlen(text) >= sizeof list) return;
  strcpy(list, text);
  char* rest = NULL;
  for (char* one = strtok_r(list, ",", &rest); one != NULL && allowed_count < ALLOWED_MAX;
       one = strtok_r(NULL, ",", &rest)) {
    char* colon = strrchr(one, ':');
    if (colon == NULL) continue;
    *colon = '\0';
    struct in_addr four;
    struct place* place = &allowed[allowed_count];
    place->port = htons((uint16_t)atoi(colon + 1));
    if (inet_pton(AF_INET, one, &four) == 1) {
      place->address = mapped(four);
    } else if (inet_pton(AF_INET6, one, &place->address) != 1) {
      continue;
    }
    allowed_count++;
  }
}

static bool is_loopback(const struct in6_addr* address) {
  if (IN6_IS_ADDR_LOOPBACK(address) || IN6_IS_ADDR_UNSPECIFIED(address)) return true;
  // 127/8, and 0.0.0.0, which is this host too.
  return IN6_IS_ADDR_V4MAPPED(address) && (address->s6_addr[12] == 127 || address->s6_addr[12] == 0);
}

static bool is_fenced(const struct sockaddr* to) {
  struct place place;
  if (to == NULL) return false;
  if (to->sa_family == AF_INET) {
    const struct sockaddr_in* four = (const struct sockaddr_in*)to;
    place.address = mapped(four->sin_addr);
    place.port = four->sin_port;
  } else if (to->sa_family == AF_INET6) {
    const struct sockaddr_in6* six = (const struct sockaddr_in6*)to;
    place.address = six->sin6_addr;
    place.port = six->sin6_port;
  } else {
    return false;
  }
  if (!is_loopback(&place.address)) return false;
  for (int i = 0; i < allowed_count; i++) {
    if (allowed[i].port == place.port &&
        memcmp(&allowed[i].address, &place.address, sizeof place.address) == 0)
      return false;
  }
  return true;
}

// Straight to the kernel: nothing of the program's own is in between.

EXPORT int connect(int fd, const struct sockaddr* to, socklen_t bytes) {
  if (is_fenced(to)) {
    errno = ECONNREFUSED;
    return -1;
  }
  return (int)syscall(SYS_connect, fd, to, bytes);
}

EXPORT ssize_t sendto(int fd, const void* data, size_t count, int flags, const struct sockaddr* to,
                      socklen_t bytes) {
  if (is_fenced(to)) {
    errno = ECONNREFUSED;
    return -1;
  }
  return syscall(SYS_sendto, fd, data, count, flags, to, bytes);
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr* message, int flags) {
  if (is_fenced(message->msg_name)) {
    errno = ECONNREFUSED;
    return -1;
  }
  return syscall(SYS_sendmsg, fd, message, flags);
}
