// Drives the shim in a subject process and checks what its children show. One check a run: `driver SHIM
// SUBJECT CHECK`. Exit 0 and a line `ok` when it holds; exit 1 and what went wrong otherwise. driver.test.ts
// runs them all.
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../../src/native/hotfork/protocol.h"

enum { COMMAND_FD = 10, CONTROL_FD = 11, REPLY_MS = 20000, FDS_MAX = 16 };

static const char* shim;
static const char* subject;

_Noreturn static void die(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  exit(1);
}

/** A process with the shim in it: the subject, or a child of it. */
struct process {
  int pid;
  int pidfd;
  int control;
  int command;
};

union packet {
  struct hf_header header;
  struct hf_state state;
  struct hf_frozen frozen;
  struct hf_child child;
  struct hf_done done;
  struct hf_refused refused;
  uint8_t bytes[HF_PACKET_MAX];
};

static union packet reply;
static size_t reply_bytes;
static int reply_fds[FDS_MAX];
static int reply_fd_count;

static void await_readable(int fd, const char* what) {
  struct pollfd one = {.fd = fd, .events = POLLIN};
  if (poll(&one, 1, REPLY_MS) != 1) die("no answer: %s", what);
}

static void receive(int control) {
  union {
    char bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    struct cmsghdr align;
  } data;
  struct iovec vector = {&reply, sizeof reply};
  struct msghdr message = {
      .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &data, .msg_controllen = sizeof data};
  await_readable(control, "control socket");
  const ssize_t bytes = recvmsg(control, &message, MSG_CMSG_CLOEXEC);
  if (bytes <= 0) die("control socket: %s", bytes == 0 ? "closed" : strerror(errno));
  reply_bytes = (size_t)bytes;
  reply_fd_count = 0;
  struct cmsghdr* rights = CMSG_FIRSTHDR(&message);
  if (rights == NULL) return;
  reply_fd_count = (int)((rights->cmsg_len - CMSG_LEN(0)) / sizeof(int));
  memcpy(reply_fds, CMSG_DATA(rights), sizeof(int) * (size_t)reply_fd_count);
}

static void expect_type(enum hf_type type) {
  if (reply.header.type == type) return;
  if (reply.header.type == HF_REFUSED) {
    die("refused: code %u number %d: %.*s", reply.refused.code, reply.refused.number,
        (int)(reply_bytes - sizeof reply.refused), reply.refused.reason);
  }
  die("reply of type %d instead of %d", reply.header.type, type);
}

static void request(int control, const void* packet, size_t bytes, const int* fds, int count) {
  union {
    char bytes[CMSG_SPACE(sizeof(int) * FDS_MAX)];
    struct cmsghdr align;
  } data;
  struct iovec vector = {(void*)packet, bytes};
  struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
  if (count > 0) {
    message.msg_control = &data;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)count);
    struct cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)count);
    memcpy(CMSG_DATA(rights), fds, sizeof(int) * (size_t)count);
  }
  if (sendmsg(control, &message, MSG_NOSIGNAL) < 0) die("sendmsg: %s", strerror(errno));
}

static struct hf_header header(enum hf_type type) {
  static uint32_t id = 100;
  return (struct hf_header){HF_MAGIC, HF_VERSION, (uint8_t)type, ++id};
}

static void simple(int control, enum hf_type type) {
  const struct hf_freeze packet = {.header = header(type)};
  request(control, &packet, sizeof packet, NULL, 0);
  receive(control);
  if (reply.header.id != packet.header.id) die("a reply to another request");
}

static void freeze(const struct process* one) {
  simple(one->control, HF_FREEZE);
  expect_type(HF_FROZEN);
}

static void release(const struct process* one) {
  simple(one->control, HF_RELEASE);
  expect_type(HF_RELEASED);
}

static void ask_fork(int control, enum hf_type type, uint32_t count, uint32_t flags) {
  struct {
    struct hf_fork fork;
    struct hf_entry entry[2];
  } packet = {
      .fork = {.header = header(type), .flags = flags, .count = count, .first_index = 1, .entries = 2},
      .entry = {{COMMAND_FD, HF_PAIR_STREAM}, {CONTROL_FD, HF_PAIR_SEQPACKET}}};
  request(control, &packet, sizeof packet.fork + sizeof packet.entry, NULL, 0);
}

static struct process take_child(int control) {
  receive(control);
  expect_type(HF_CHILD);
  if (reply_fd_count != 3) die("a child came with %d descriptors", reply_fd_count);
  return (struct process){
      .pid = (int)reply.child.pid, .pidfd = reply_fds[0], .command = reply_fds[1], .control = reply_fds[2]};
}

static struct process fork_one(const struct process* from, enum hf_type type, uint32_t flags) {
  ask_fork(from->control, type, 1, flags);
  const struct process child = take_child(from->control);
  receive(from->control);
  expect_type(HF_DONE);
  return child;
}

static const char* ask(const struct process* one, const char* command) {
  static char line[300];
  if (dprintf(one->command, "%s\n", command) < 0) die("%s: %s", command, strerror(errno));
  await_readable(one->command, command);
  const ssize_t bytes = read(one->command, line, sizeof line - 1);
  if (bytes <= 0) die("%s: the process is gone", command);
  line[bytes] = '\0';
  if (strncmp(line, "ok", 2) != 0) die("pid %d, %s: %s", one->pid, command, line);
  return line;
}

static void end(struct process* one) {
  kill(one->pid, SIGKILL);
  int status;
  if (waitpid(one->pid, &status, 0) != one->pid) die("child %d is not ours: %s", one->pid, strerror(errno));
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
    die("child %d had ended with status %x", one->pid, status);
  close(one->control);
  close(one->command);
  if (one->pidfd >= 0) close(one->pidfd);
}

static struct process start_with(void (*prepare)(void)) {
  int control[2];
  int command[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0) die("socketpair");
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, command) != 0) die("socketpair");
  const int pid = fork();
  if (pid == 0) {
    const int null = open("/dev/null", O_RDWR);
    dup2(null, 0);
    dup2(null, 1);
    // Standard error stays ours: it is a pipe or a file, which the shim would want replaced. Send it nowhere
    // too.
    if (getenv("HOTFORK_TEST_STDERR") == NULL) dup2(null, 2);
    dup2(command[1], 200);
    dup2(control[1], 201);
    dup2(200, COMMAND_FD);
    dup2(201, CONTROL_FD);
    syscall(SYS_close_range, CONTROL_FD + 1, ~0U, 0);
    syscall(SYS_close_range, 3, COMMAND_FD - 1, 0);
    if (prepare != NULL) prepare();
    setenv("LD_PRELOAD", shim, 1);
    setenv("FORKD_HOTFORK_FD", "11", 1);
    execl(subject, subject, NULL);
    _exit(127);
  }
  close(control[1]);
  close(command[1]);
  const struct process one = {.pid = pid, .pidfd = -1, .control = control[0], .command = command[0]};
  receive(one.control);
  expect_type(HF_HELLO);
  if ((int)reply.state.pid != pid || reply.state.control_fd != CONTROL_FD) die("HELLO from somebody else");
  ask(&one, "ids");
  return one;
}

static struct process start(void) {
  return start_with(NULL);
}

static int count_entries(int pid, const char* what) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
  DIR* directory = opendir(path);
  if (directory == NULL) return -1;
  int count = 0;
  while (readdir(directory) != NULL) count++;
  closedir(directory);
  return count - 2;
}

static long status_kib(int pid, const char* file, const char* name) {
  char path[64];
  char line[200];
  snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
  FILE* stream = fopen(path, "r");
  if (stream == NULL) return -1;
  long value = -1;
  while (fgets(line, sizeof line, stream) != NULL) {
    if (strncmp(line, name, strlen(name)) == 0) value = atol(line + strlen(name) + 1);
  }
  fclose(stream);
  return value;
}

// --- the checks
// -----------------------------------------------------------------------------------------------

/** The shim alone changes nothing; freezing and releasing changes nothing. */
static void check_park(void) {
  struct process one = start();
  ask(&one, "check");
  for (int i = 0; i < 200; i++) {
    freeze(&one);
    if (reply.frozen.threads != 13) die("%u threads parked", reply.frozen.threads);
    release(&one);
  }
  ask(&one, "check");
  if (strstr(ask(&one, "ids"), "getenv=clear") == NULL) die("LD_PRELOAD was not cleared");
  end(&one);
}

/** Fifty children, one after the other, each with all that its parent had. */
static void check_children(void) {
  struct process one = start();
  for (int i = 0; i < 50; i++) {
    freeze(&one);
    // The template stays frozen meanwhile: its threads are busy and would only slow this down.
    struct process child = fork_one(&one, HF_FORK, 0);
    ask(&child, "check");
    char expected[64];
    snprintf(expected, sizeof expected, "ok pid=%d ppid=%d pgid=%d", child.pid, getpid(), child.pid);
    if (strncmp(ask(&child, "ids"), expected, strlen(expected)) != 0)
      die("ids: %s, not %s", ask(&child, "ids"), expected);
    if (count_entries(child.pid, "fd") != count_entries(one.pid, "fd")) die("a child has other descriptors");
    if (count_entries(child.pid, "task") != count_entries(one.pid, "task")) die("a child has other threads");
    end(&child);
    release(&one);
  }
  ask(&one, "check");
  end(&one);
}

/** One request, many children, all alive at once, and none hears another. */
static void check_siblings(void) {
  enum { COUNT = 8 };
  struct process one = start();
  struct process child[COUNT];
  freeze(&one);
  ask_fork(one.control, HF_FORK, COUNT, 0);
  for (int i = 0; i < COUNT; i++) {
    child[i] = take_child(one.control);
    if (reply.child.index != (uint32_t)i + 1) die("children out of order");
  }
  receive(one.control);
  expect_type(HF_DONE);
  release(&one);
  ask(&one, "check");
  for (int i = 0; i < COUNT; i++) ask(&child[i], "check");
  for (int i = 0; i < COUNT; i++) end(&child[i]);
  ask(&one, "check");
  end(&one);
}

/** A fork of a fork of a fork, each branched while it runs, all answering at once. */
static void check_depth(void) {
  struct process generation[4] = {start()};
  for (int i = 0; i < 3; i++) {
    generation[i + 1] = fork_one(&generation[i], HF_BRANCH, 0);
    ask(&generation[i + 1], "check");
  }
  for (int i = 0; i < 4; i++) ask(&generation[i], "check");
  for (int i = 0; i < 4; i++) end(&generation[i]);
}

/** A child born frozen is one thread; it can be forked, and released later; so can its own frozen child. */
static void check_frozen(void) {
  struct process one = start();
  struct process copy = fork_one(&one, HF_BRANCH, HF_FORK_FROZEN);
  ask(&one, "check");
  simple(copy.control, HF_STATUS);
  expect_type(HF_STATE);
  if (reply.state.phase != HF_PHASE_FROZEN) die("the copy is not frozen");
  if (count_entries(copy.pid, "task") != 1)
    die("a frozen child has %d threads", count_entries(copy.pid, "task"));
  struct process copy2 = fork_one(&copy, HF_FORK, HF_FORK_FROZEN);
  struct process child = fork_one(&copy2, HF_FORK, 0);
  ask(&child, "check");
  release(&copy);
  ask(&copy, "check");
  struct process branch = fork_one(&copy, HF_BRANCH, 0);
  ask(&branch, "check");
  release(&copy2);
  ask(&copy2, "check");
  end(&branch);
  end(&child);
  end(&copy2);
  end(&copy);
  end(&one);
}

/** Memory that the program marked MADV_DONTFORK is there in a child. */
static void check_dontfork(void) {
  struct process one = start();
  char command[64];
  snprintf(command, sizeof command, "peek %lu", strtoul(ask(&one, "dontfork") + 3, NULL, 10));
  struct process child = fork_one(&one, HF_BRANCH, 0);
  if (strcmp(ask(&child, command), "ok 77\n") != 0) die("the page is not the template's");
  end(&child);
  end(&one);
}

static void expect_refusal(enum hf_code code, const char* word) {
  if (reply.header.type != HF_REFUSED) die("not refused: reply of type %d", reply.header.type);
  char reason[200] = "";
  memcpy(reason, reply.refused.reason, reply_bytes - sizeof reply.refused);
  if (reply.refused.code != code || strstr(reason, word) == NULL)
    die("code %u: %s", reply.refused.code, reason);
}

/** What cannot be copied is refused by name, and the process goes on unharmed. */
static void check_refusals(void) {
  static const struct {
    const char* what;
    enum hf_code code;
    const char* word;
  } cases[] = {
      {"epoll", HF_DESCRIPTOR, "epoll"},
      {"timerfd", HF_DESCRIPTOR, "timerfd"},
      {"inotify", HF_DESCRIPTOR, "inotify"},
      {"pidfd", HF_DESCRIPTOR, "kind"},
      {"userfaultfd", HF_DESCRIPTOR, "userfaultfd"},
      {"timer", HF_UNSUPPORTED, "POSIX timers"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    struct process one = start();
    char command[64];
    snprintf(command, sizeof command, "odd %s", cases[i].what);
    ask(&one, command);
    simple(one.control, HF_FREEZE);
    expect_refusal(cases[i].code, cases[i].word);
    ask_fork(one.control, HF_BRANCH, 1, 0);
    receive(one.control);
    expect_refusal(cases[i].code, cases[i].word);
    ask(&one, "check");
    end(&one);
  }
  static const char* const unreplaced[] = {"odd pipe", "odd file"};
  for (size_t i = 0; i < 2; i++) {
    struct process one = start();
    ask(&one, unreplaced[i]);
    freeze(&one);
    ask_fork(one.control, HF_FORK, 1, 0);
    receive(one.control);
    expect_refusal(HF_UNREPLACED, "not replaced");
    release(&one);
    ask(&one, "check");
    end(&one);
  }
}

/** An epoll instance nobody uses is no obstacle. */
static void check_epoll(void) {
  struct process one = start();
  ask(&one, "odd epoll-empty");
  struct process child = fork_one(&one, HF_BRANCH, 0);
  ask(&child, "check");
  if (count_entries(child.pid, "fd") != count_entries(one.pid, "fd")) die("a child has other descriptors");
  end(&child);
  end(&one);
}

/** Packets that make no sense, and requests at the wrong time, are answered and harm nothing. */
static void check_protocol(void) {
  struct process one = start();
  request(one.control, "x", 1, NULL, 0);
  receive(one.control);
  expect_refusal(HF_MALFORMED, "packet");
  struct hf_header odd = header(HF_STATUS);
  odd.version = 9;
  request(one.control, &odd, sizeof odd, NULL, 0);
  receive(one.control);
  expect_refusal(HF_MALFORMED, "version");
  simple(one.control, HF_RELEASE);
  expect_refusal(HF_WRONG_PHASE, "not frozen");
  ask_fork(one.control, HF_FORK, 1, 0);
  receive(one.control);
  expect_refusal(HF_WRONG_PHASE, "freeze first");
  freeze(&one);
  simple(one.control, HF_FREEZE);
  expect_refusal(HF_WRONG_PHASE, "already");
  ask_fork(one.control, HF_BRANCH, 1, 0);
  receive(one.control);
  expect_refusal(HF_WRONG_PHASE, "frozen");
  struct {
    struct hf_fork fork;
    struct hf_entry entry[2];
  } packet = {.fork = {.header = header(HF_FORK), .count = 1, .entries = 1},
              .entry = {{COMMAND_FD, HF_PAIR_STREAM}}};
  request(one.control, &packet, sizeof packet.fork + sizeof *packet.entry, NULL, 0);
  receive(one.control);
  expect_refusal(HF_MALFORMED, "control socket");
  packet.fork.entries = 2;
  request(one.control, &packet, sizeof packet.fork + sizeof *packet.entry, NULL, 0);
  receive(one.control);
  expect_refusal(HF_MALFORMED, "length");
  packet.entry[0] = (struct hf_entry){99, HF_NULL};
  packet.entry[1] = (struct hf_entry){CONTROL_FD, HF_PAIR_SEQPACKET};
  request(one.control, &packet, sizeof packet.fork + sizeof packet.entry, NULL, 0);
  receive(one.control);
  expect_refusal(HF_MALFORMED, "not open");
  packet.entry[0] = (struct hf_entry){COMMAND_FD, HF_GIVEN};
  request(one.control, &packet, sizeof packet.fork + sizeof packet.entry, NULL, 0);
  receive(one.control);
  expect_refusal(HF_MALFORMED, "descriptors");
  ask_fork(one.control, HF_FORK, 0, 0);
  receive(one.control);
  expect_type(HF_DONE);
  release(&one);
  ask(&one, "check");
  end(&one);
}

/** A descriptor that came with the request is the child's; its old content does not leak into it. */
static void check_given(void) {
  struct process one = start();
  int ends[2];
  int control[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) die("socketpair");
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, control) != 0) die("socketpair");
  freeze(&one);
  struct {
    struct hf_fork fork;
    struct hf_entry entry[2];
  } packet = {.fork = {.header = header(HF_FORK), .count = 1, .entries = 2},
              .entry = {{CONTROL_FD, HF_GIVEN}, {COMMAND_FD, HF_GIVEN}}};
  const int fds[2] = {control[1], ends[1]};
  // Said before the child exists: it finds the command waiting.
  if (dprintf(ends[0], "ids\n") < 0) die("write");
  request(one.control, &packet, sizeof packet.fork + sizeof packet.entry, fds, 2);
  receive(one.control);
  expect_type(HF_CHILD);
  if (reply_fd_count != 1) die("%d descriptors came back", reply_fd_count);
  struct process child = {(int)reply.child.pid, reply_fds[0], control[0], ends[0]};
  receive(one.control);
  expect_type(HF_DONE);
  close(ends[1]);
  close(control[1]);
  char line[100];
  await_readable(child.command, "ids");
  if (read(child.command, line, sizeof line) <= 0) die("no answer");
  ask(&child, "check");
  simple(child.control, HF_STATUS);
  expect_type(HF_STATE);
  end(&child);
  end(&one);
}

/** 10,000 forks leave nothing behind in the template. */
static void check_leaks(void) {
  enum { ROUNDS = 100, BATCH = 100 };
  struct process one = start();
  freeze(&one);
  int fds = 0;
  long rss = 0;
  for (int round = 0; round < ROUNDS; round++) {
    ask_fork(one.control, HF_FORK, BATCH, HF_FORK_FROZEN);
    for (int i = 0; i < BATCH; i++) {
      struct process child = take_child(one.control);
      end(&child);
    }
    receive(one.control);
    expect_type(HF_DONE);
    if (round == 0) {
      fds = count_entries(one.pid, "fd");
      rss = status_kib(one.pid, "status", "VmRSS:");
    }
  }
  if (count_entries(one.pid, "fd") != fds)
    die("%d descriptors instead of %d", count_entries(one.pid, "fd"), fds);
  if (status_kib(one.pid, "status", "VmRSS:") > rss + 64)
    die("grew from %ld KiB to %ld", rss, status_kib(one.pid, "status", "VmRSS:"));
  if (count_entries(one.pid, "task") != 14) die("%d threads", count_entries(one.pid, "task"));
  release(&one);
  ask(&one, "check");
  end(&one);
}

static void die_with_parent(void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/** A child dies with the engine, when its template was told to. */
static void check_death(void) {
  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) die("pipe");
  // Children of an engine that dies are ours, so that we can see them go.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const int engine = fork();
  if (engine == 0) {
    struct process one = start_with(die_with_parent);
    struct process child = fork_one(&one, HF_BRANCH, 0);
    struct process grandchild = fork_one(&child, HF_BRANCH, 0);
    struct process frozen = fork_one(&one, HF_BRANCH, HF_FORK_FROZEN);
    const int pids[4] = {one.pid, child.pid, grandchild.pid, frozen.pid};
    if (write(report[1], pids, sizeof pids) != sizeof pids) _exit(1);
    for (;;) pause();
  }
  int pids[4];
  await_readable(report[0], "engine");
  if (read(report[0], pids, sizeof pids) != sizeof pids) die("no pids");
  kill(engine, SIGKILL);
  waitpid(engine, NULL, 0);
  for (int i = 0; i < 4; i++) {
    int status = 0;
    int waited = 0;
    while (waitpid(pids[i], &status, WNOHANG) == 0) {
      if (++waited > 1000) die("process %d of 4 outlived its engine by a second", i);
      usleep(1000);
    }
    // A child still on its way finds the engine gone (71), another its control socket closed (0), or the
    // kernel ends it: whichever is first.
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    const bool by_itself = i > 0 && (code == 71 || code == 0);
    if (!WIFSIGNALED(status) && !by_itself) die("process %d of 4 ended with status %x", i, status);
  }
}

/** Waits a second for a process to end by itself. */
static void expect_end(int pid, const char* who, int wanted) {
  int status = 0;
  int waited = 0;
  while (waitpid(pid, &status, WNOHANG) == 0) {
    if (++waited > 1000) die("%s lives on", who);
    usleep(1000);
  }
  if (status != wanted) die("%s ended with status %x", who, status);
}

/** A tied child lives as long as somebody holds its control socket, also after the engine, and so do its
 * copies. */
static void check_tied(void) {
  int report[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, report) != 0) die("socketpair");
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  const int engine = fork();
  if (engine == 0) {
    struct process one = start_with(die_with_parent);
    struct process child[3] = {fork_one(&one, HF_BRANCH, HF_FORK_TIED),
                               fork_one(&one, HF_BRANCH, HF_FORK_TIED)};
    child[2] = fork_one(&child[0], HF_BRANCH, 0);
    for (int i = 0; i < 3; i++) ask(&child[i], "check");
    // Of the first only is somebody else given a hold.
    const int fds[2] = {child[0].control, child[0].command};
    const int pids[4] = {child[0].pid, child[1].pid, child[2].pid, one.pid};
    request(report[1], pids, sizeof pids, fds, 2);
    for (;;) pause();
  }
  close(report[1]);
  receive(report[0]);
  int pids[4];
  memcpy(pids, &reply, sizeof pids);
  struct process child = {.pid = pids[0], .pidfd = -1, .control = reply_fds[0], .command = reply_fds[1]};
  kill(engine, SIGKILL);
  waitpid(engine, NULL, 0);
  expect_end(pids[3], "the template", SIGKILL);
  expect_end(pids[1], "a child that nobody holds", 0);
  expect_end(pids[2], "a copy that nobody holds", 0);
  // Its parent is another by now.
  ask(&child, "check");
  struct process copy = fork_one(&child, HF_BRANCH, 0);
  struct process frozen = fork_one(&copy, HF_BRANCH, HF_FORK_FROZEN);
  ask(&copy, "check");
  ask(&child, "check");
  close(frozen.control);
  expect_end(frozen.pid, "a frozen copy", 0);
  close(copy.control);
  expect_end(copy.pid, "a copy", 0);
  close(child.control);
  expect_end(child.pid, "the child", 0);
}

/** A child that cannot be completed says why on its control socket, and ends. */
static void check_failed(void) {
  struct process one = start();
  freeze(&one);
  // In place of a cgroup's list of processes, a file that no write to succeeds.
  struct {
    struct hf_fork fork;
    struct hf_entry entry[3];
  } packet = {.fork = {.header = header(HF_FORK), .count = 1, .entries = 3},
              .entry = {{COMMAND_FD, HF_PAIR_STREAM}, {CONTROL_FD, HF_PAIR_SEQPACKET}, {0, HF_CGROUP_PROCS}}};
  const int full = open("/dev/full", O_WRONLY | O_CLOEXEC);
  request(one.control, &packet, sizeof packet, &full, 1);
  struct process child = take_child(one.control);
  receive(one.control);
  expect_type(HF_DONE);
  receive(child.control);
  expect_refusal(HF_SYSCALL, "cgroup");
  if (reply.refused.number != ENOSPC) die("errno %d", reply.refused.number);
  int status;
  if (waitpid(child.pid, &status, 0) != child.pid || !WIFEXITED(status)) die("the child did not end");
  if (WEXITSTATUS(status) != 71) die("the child ended with status %x", status);
  // The template itself runs out of descriptors: refused, and it goes on.
  struct rlimit before;
  if (prlimit(one.pid, RLIMIT_NOFILE, NULL, &before) != 0) die("prlimit");
  const struct rlimit few = {.rlim_cur = 12, .rlim_max = before.rlim_max};
  if (prlimit(one.pid, RLIMIT_NOFILE, &few, NULL) != 0) die("prlimit");
  ask_fork(one.control, HF_FORK, 1, 0);
  receive(one.control);
  expect_refusal(HF_SYSCALL, "descriptors");
  if (reply.refused.number != EMFILE) die("errno %d", reply.refused.number);
  if (prlimit(one.pid, RLIMIT_NOFILE, &before, NULL) != 0) die("prlimit");
  release(&one);
  ask(&one, "check");
  end(&one);
}

static int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/** Threads that may run on one processor only. */
static int count_pinned(const struct process* one) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", one->pid);
  DIR* directory = opendir(path);
  if (directory == NULL) die("opendir %s", path);
  int single = 0;
  for (struct dirent* entry; (entry = readdir(directory)) != NULL;) {
    const int tid = atoi(entry->d_name);
    if (tid == 0) continue;
    cpu_set_t cpus;
    if (sched_getaffinity(tid, sizeof cpus, &cpus) != 0) continue;  // a thread that has just ended
    if (CPU_COUNT(&cpus) == 1) single++;
  }
  closedir(directory);
  return single;
}

enum { PINNED_MS = 250, PATIENCE_MS = 20000 };

/** `since_ms`: when it was asked for. On a busy host its first moments may be over by now, and then nothing
 * is said. */
static void expect_pinned(const struct process* one, int64_t since_ms) {
  // 13 threads and the shim's own.
  const int single = count_pinned(one);
  if (single != 14 && now_ms() - since_ms < PINNED_MS)
    die("%d threads are tied to one processor, not 14", single);
}

/** One chose a processor for itself long before, and has it again as soon as it has run. */
static void expect_free(const struct process* one) {
  cpu_set_t ours;
  sched_getaffinity(0, sizeof ours, &ours);
  const int expected = CPU_COUNT(&ours) == 1 ? 14 : 1;
  const int64_t began = now_ms();
  int single;
  while ((single = count_pinned(one)) != expected) {
    if (now_ms() - began > PATIENCE_MS) die("%d threads are tied to one processor, not %d", single, expected);
    usleep(5000);
  }
}

/** HF_FORK_PIN holds for the first moments and for all threads, then leaves no trace. */
static void check_pin(void) {
  struct process one = start();
  ask(&one, "check");  // by now each thread has made its own settings
  freeze(&one);
  const int64_t asked = now_ms();
  ask_fork(one.control, HF_FORK, 2, HF_FORK_PIN);
  struct process child[2];
  for (int i = 0; i < 2; i++) child[i] = take_child(one.control);
  receive(one.control);
  expect_type(HF_DONE);
  release(&one);
  // The first answer to STATUS comes from the rebuilt control thread: by then all threads exist.
  simple(child[0].control, HF_STATUS);
  expect_type(HF_STATE);
  expect_pinned(&child[0], asked);
  // The second is branched while it is still pinned: its copy must not take that for its own wish.
  struct process copy = fork_one(&child[1], HF_BRANCH, 0);
  expect_free(&child[1]);
  simple(copy.control, HF_STATUS);
  expect_free(&copy);
  expect_free(&child[0]);
  expect_free(&one);
  if (getpriority(PRIO_PROCESS, (id_t)child[0].pid) != getpriority(PRIO_PROCESS, 0))
    die("a child kept the boost");
  ask(&child[0], "check");
  end(&copy);
  end(&child[1]);
  end(&child[0]);
  end(&one);
}

static const struct {
  const char* name;
  void (*run)(void);
} checks[] = {
    {"park", check_park},         {"children", check_children}, {"siblings", check_siblings},
    {"depth", check_depth},       {"frozen", check_frozen},     {"dontfork", check_dontfork},
    {"refusals", check_refusals}, {"epoll", check_epoll},       {"protocol", check_protocol},
    {"given", check_given},       {"leaks", check_leaks},       {"death", check_death},
    {"tied", check_tied},         {"failed", check_failed},     {"pin", check_pin},
};

int main(int argc, char** argv) {
  if (argc != 4) die("usage: driver SHIM SUBJECT CHECK");
  shim = argv[1];
  subject = argv[2];
  for (size_t i = 0; i < sizeof checks / sizeof *checks; i++) {
    if (strcmp(checks[i].name, argv[3]) != 0) continue;
    checks[i].run();
    printf("ok\n");
    return 0;
  }
  die("no check is called %s", argv[3]);
}
