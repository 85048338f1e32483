// Holds descriptors for a daemon that may be killed at any instant: those of the sandboxes that it has
// acknowledged. The daemon that comes next takes duplicates back. Nothing runs through this process: it is
// in no data path, starts nothing and is the parent of nothing, so there is little in it that could fail.
//
//   forkd_keeper SOCKET     descriptor 3 is the connection of the daemon that started it
//
// It ends when it holds nothing and no daemon is connected. When it ends, so do the machines whose
// descriptors only it still held: they live as long as somebody holds their first descriptor
// (hotfork/server.c, tether/tether.c).
//
// One message a packet, descriptors by SCM_RIGHTS; src/main/sandbox/keeper.ts is the other side:
//
//   daemon -> keeper   K name\n...   keep: four descriptors for each name, in order; answered by k, or by f
//                                    when they did not all arrive
//                      D name\n...   drop
//                      L             list: an E for each, then .
//   keeper -> daemon   H pid         greeting
//                      E name        one entry, with its four descriptors
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

// 62 entries of four descriptors are as many as one message may carry (SCM_MAX_FD is 253).
enum { FDS = 4, BATCH = 62, NAME_BYTES = 120, PACKET_BYTES = BATCH * (NAME_BYTES + 1) + 1, FIRST_CLIENT = 3 };

struct entry {
  char name[NAME_BYTES];
  int fds[FDS];
};

static struct entry* entries;
static size_t count;
static int listener = -1;
static int client = FIRST_CLIENT;

static void close_all(const int* fds, size_t n) {
  for (size_t i = 0; i < n; i++) close(fds[i]);
}

static void remove_at(size_t i) {
  close_all(entries[i].fds, FDS);
  entries[i] = entries[--count];
}

static void drop(const char* name) {
  for (size_t i = count; i-- > 0;) {
    if (strcmp(entries[i].name, name) == 0) remove_at(i);
  }
}

static bool keep(const char* name, const int* fds) {
  if (strlen(name) >= NAME_BYTES) return false;
  struct entry* grown = realloc(entries, (count + 1) * sizeof *entries);
  if (grown == NULL) return false;
  entries = grown;
  drop(name);
  struct entry* one = &entries[count++];
  strcpy(one->name, name);
  memcpy(one->fds, fds, sizeof one->fds);
  return true;
}

static void hang_up(void) {
  close(client);
  client = -1;
}

static void say(char type, const char* text, const int* fds, size_t n) {
  char data[1 + NAME_BYTES];
  union {
    char bytes[CMSG_SPACE(sizeof(int) * FDS)];
    struct cmsghdr align;
  } control;
  data[0] = type;
  memcpy(data + 1, text, strlen(text));
  struct iovec vector = {.iov_base = data, .iov_len = 1 + strlen(text)};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (n > 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * n);
    struct cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * n);
    memcpy(CMSG_DATA(rights), fds, sizeof(int) * n);
  }
  while (client >= 0 && sendmsg(client, &message, MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN) {
      struct pollfd room = {.fd = client, .events = POLLOUT};
      poll(&room, 1, -1);
    } else if (errno == ETOOMANYREFS) {
      // unix(7): more descriptors under way than RLIMIT_NOFILE. No event tells when some have been taken.
      nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    } else {
      hang_up();
    }
  }
}

static void greet(void) {
  char pid[16];
  snprintf(pid, sizeof pid, "%d", getpid());
  say('H', pid, NULL, 0);
}

// All of them or none: the daemon takes a refusal as one for the whole packet.
static void on_keep(char* names, const int* fds, size_t n) {
  size_t kept = 0;
  bool fine = true;
  for (char* name = strtok(names, "\n"); name != NULL; name = strtok(NULL, "\n")) {
    fine = fine && (kept + 1) * FDS <= n && keep(name, fds + kept * FDS);
    if (fine) kept++;
  }
  close_all(fds + kept * FDS, n - kept * FDS);
  say(fine && kept * FDS == n ? 'k' : 'f', "", NULL, 0);
}

static void on_list(void) {
  for (size_t i = 0; i < count && client >= 0; i++) say('E', entries[i].name, entries[i].fds, FDS);
  say('.', "", NULL, 0);
}

static void hear(void) {
  static char data[PACKET_BYTES + 1];
  static int fds[FDS * BATCH];
  static union {
    char bytes[CMSG_SPACE(sizeof fds)];
    struct cmsghdr align;
  } control;
  struct iovec vector = {.iov_base = data, .iov_len = PACKET_BYTES};
  struct msghdr message = {.msg_iov = &vector,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  const ssize_t bytes = recvmsg(client, &message, MSG_CMSG_CLOEXEC);
  if (bytes < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (bytes <= 0) return hang_up();
  size_t n = 0;
  for (struct cmsghdr* one = CMSG_FIRSTHDR(&message); one != NULL; one = CMSG_NXTHDR(&message, one)) {
    if (one->cmsg_level != SOL_SOCKET || one->cmsg_type != SCM_RIGHTS) continue;
    n = (one->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    memcpy(fds, CMSG_DATA(one), n * sizeof(int));
  }
  data[bytes] = '\0';
  switch (data[0]) {
    case 'K':
      return on_keep(data + 1, fds, n);
    case 'D':
      for (char* name = strtok(data + 1, "\n"); name != NULL; name = strtok(NULL, "\n")) drop(name);
      break;
    case 'L':
      on_list();
      break;
    default:
      hang_up();
  }
  close_all(fds, n);
}

// Of a machine that has ended, nothing need be held: its end of the socket is closed.
static void look(const struct pollfd* polled, size_t polled_count) {
  for (size_t i = polled_count; i-- > 0;) {
    if ((polled[i].revents & (POLLHUP | POLLERR | POLLNVAL)) != 0) remove_at(i);
  }
}

static bool listen_at(const char* name) {
  const struct sockaddr_un address = {.sun_family = AF_UNIX};
  struct sockaddr_un here = address;
  if (strlen(name) >= sizeof here.sun_path) return false;
  strcpy(here.sun_path, name);
  // What is there is a dead keeper's: the daemon that starts this one has tried it.
  unlink(name);
  umask(0177);
  listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  return listener >= 0 && bind(listener, (struct sockaddr*)&here, sizeof here) == 0 &&
         listen(listener, 8) == 0;
}

// The directory becomes the current one, and the name alone is bound: an address holds 107 characters.
static const char* enter_folder(char* path) {
  char* slash = strrchr(path, '/');
  if (slash == NULL) return path;
  *slash = '\0';
  const bool entered = chdir(*path == '\0' ? "/" : path) == 0;
  *slash = '/';
  return entered ? slash + 1 : NULL;
}

static bool is_ours(const char* name, const struct stat* bound) {
  struct stat now;
  return lstat(name, &now) == 0 && now.st_dev == bound->st_dev && now.st_ino == bound->st_ino;
}

int main(int argc, char** argv) {
  struct rlimit files;
  struct stat bound;
  signal(SIGHUP, SIG_IGN);
  signal(SIGINT, SIG_IGN);
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  const char* name = argc == 2 ? enter_folder(argv[1]) : NULL;
  if (name == NULL || !listen_at(name) || lstat(name, &bound) != 0) {
    say('X', strerror(errno), NULL, 0);
    return 1;
  }
  fcntl(client, F_SETFD, FD_CLOEXEC);
  greet();
  while (client >= 0 || count > 0) {
    struct pollfd polled[count + 1];
    // One daemon at a time: its state has one lock. The next one waits in the listener's queue.
    polled[count] = (struct pollfd){.fd = client >= 0 ? client : listener, .events = POLLIN};
    for (size_t i = 0; i < count; i++) polled[i] = (struct pollfd){.fd = entries[i].fds[0]};
    if (poll(polled, count + 1, -1) <= 0) continue;
    const bool heard = polled[count].revents != 0;
    look(polled, count);
    if (!heard) continue;
    if (client >= 0) {
      hear();
    } else {
      client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
      if (client >= 0) greet();
    }
  }
  if (is_ours(name, &bound)) unlink(name);
  return 0;
}
