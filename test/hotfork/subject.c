// The program that is forked: one thread for each state a thread can be parked in, each of which shows that
// it goes on. Commands come as lines on descriptor 10, one answer a line: `ok ...` or `fail ...`.
#include <errno.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/rseq.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { COMMAND_FD = 10, WAIT_MS = 5000, PROBE_COUNT = 7 };

enum role {
  COND,
  SLEEP,
  HAMMER_A,
  HAMMER_B,
  PING,
  PONG,
  COMPUTE,
  RECURSIVE_A,
  RECURSIVE_B,
  WRITER,
  POLL,
  ROLES
};
static const char* const role_names[ROLES] = {"cond",        "sleep",  "hammer-a", "hammer-b",
                                              "ping",        "pong",   "compute",  "recursive-a",
                                              "recursive-b", "writer", "poll"};

static volatile uint64_t progress[ROLES];
static char failure[200];
static pthread_t thread_of[ROLES];
static __thread uint64_t local_magic;
static __thread uint8_t* local_block;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t cond = PTHREAD_COND_INITIALIZER;
static int cond_generation;
static pthread_mutex_t recursive;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static int ping_fd, pong_fd, probe_fd, probe_alias_fd, semaphore_fd, signal_fd, poll_fd;
static pthread_t main_thread;
static pthread_t leaver;
static int leave_generation;
static int signals_seen;  // several threads count at once

static void fail(const char* format, ...) {
  if (failure[0] != '\0') return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(failure, sizeof failure, format, arguments);
  va_end(arguments);
}

static void expect(int result, const char* what) {
  if (result != 0) fail("%s: %s", what, strerror(result > 0 ? result : errno));
}

/** Settings that differ from those of the thread that will rebuild this one. */
static void give_oddities(enum role role) {
  static char stack[65536];
  const stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack};
  cpu_set_t first;
  CPU_ZERO(&first);
  CPU_SET(0, &first);
  if (role == COMPUTE) sigaltstack(&alternate, NULL);
  if (role == SLEEP) prctl(PR_SET_TIMERSLACK, 12345UL);
  if (role == POLL) sched_setaffinity(0, sizeof first, &first);
}

/** What the kernel keeps for one thread, and a copy must be given again. */
struct kernel_state {
  stack_t alternate_stack;
  void* robust_list;
  long timer_slack;
  sigset_t mask;
  cpu_set_t cpus;
};
static __thread struct kernel_state at_start;

static void read_kernel_state(struct kernel_state* state) {
  size_t bytes;
  memset(state, 0, sizeof *state);
  sigaltstack(NULL, &state->alternate_stack);
  syscall(SYS_get_robust_list, 0, &state->robust_list, &bytes);
  state->timer_slack = prctl(PR_GET_TIMERSLACK);
  pthread_sigmask(SIG_BLOCK, NULL, &state->mask);
  sched_getaffinity(0, sizeof state->cpus, &state->cpus);
}

static void check_kernel_state(enum role role) {
  const char* name = role_names[role];
  struct kernel_state now;
  read_kernel_state(&now);
  if (now.alternate_stack.ss_sp != at_start.alternate_stack.ss_sp) fail("%s lost its alternate stack", name);
  if (now.robust_list != at_start.robust_list) fail("%s lost its robust list", name);
  if (now.timer_slack != at_start.timer_slack) fail("%s has a timer slack of %ld ns", name, now.timer_slack);
  if (memcmp(&now.mask, &at_start.mask, 8) != 0) fail("%s has another signal mask", name);
  // The others may be pinned for their first moments, if the fork said so.
  if (role == POLL && !CPU_EQUAL(&now.cpus, &at_start.cpus)) fail("%s may run on other processors", name);
  if (__rseq_size == 0) return;
  // The kernel says EBUSY to a second registration of the same area, and takes a first one.
  void* area = (char*)__builtin_thread_pointer() + __rseq_offset;
  if (syscall(SYS_rseq, area, 32, 0, RSEQ_SIG) == 0 || errno != EBUSY) fail("%s lost its rseq area", name);
}

/** Thread-local data must be this thread's own and unchanged. */
static void step(enum role role) {
  const uint64_t magic = 0x1234567800000000u + role;
  if (local_magic == 0) {
    local_magic = magic;
    local_block = malloc(64);
    memset(local_block, (int)role + 1, 64);
    give_oddities(role);
    read_kernel_state(&at_start);
  }
  if (local_magic != magic || local_block[63] != role + 1)
    fail("thread-local data of %s changed", role_names[role]);
  if (!pthread_equal(pthread_self(), thread_of[role])) fail("%s is not itself", role_names[role]);
  if (progress[role] % 16 == 0) check_kernel_state(role);
  progress[role]++;
}

/** A busy thread leaves the processors to others most of the time: what checks it runs beside other suites.
 * Rarely, and long: with many children, timers alone could keep a processor busy. */
static void rest(enum role role, int every) {
  if (progress[role] % every == 0) usleep(4000);
}

__attribute__((noreturn)) static void* run_cond(void* unused) {
  (void)unused;
  int seen = 0;
  for (;;) {
    expect(pthread_mutex_lock(&mutex), "lock");
    while (cond_generation == seen) expect(pthread_cond_wait(&cond, &mutex), "cond_wait");
    seen = cond_generation;
    expect(pthread_mutex_unlock(&mutex), "unlock");
    step(COND);
  }
}

__attribute__((noreturn)) static void* run_sleep(void* unused) {
  (void)unused;
  for (;;) {
    struct timespec left = {.tv_nsec = 2000000};
    while (nanosleep(&left, &left) != 0) {
      if (errno != EINTR) fail("nanosleep: %s", strerror(errno));
    }
    step(SLEEP);
  }
}

__attribute__((noreturn)) static void* run_hammer(void* argument) {
  const enum role role = (enum role)(intptr_t)argument;
  uint8_t* blocks[16] = {0};
  unsigned seed = role;
  for (;;) {
    const unsigned i = (unsigned)rand_r(&seed) % 16;
    if (blocks[i] != NULL && blocks[i][0] != (uint8_t)(i + role)) fail("heap block changed");
    free(blocks[i]);
    const size_t bytes = 16 + (size_t)(rand_r(&seed) % (progress[role] % 64 == 0 ? 200000 : 3000));
    blocks[i] = malloc(bytes);
    blocks[i][0] = (uint8_t)(i + role);
    step(role);
    rest(role, 1024);
  }
}

__attribute__((noreturn)) static void* run_ping(void* unused) {
  (void)unused;
  for (uint64_t token = 1;; token++) {
    if (write(ping_fd, &token, sizeof token) != sizeof token) fail("ping write: %s", strerror(errno));
    uint64_t got;
    if (read(pong_fd, &got, sizeof got) != sizeof got || got != token) fail("ping got another's token");
    step(PING);
    rest(PING, 64);
  }
}

__attribute__((noreturn)) static void* run_pong(void* unused) {
  (void)unused;
  for (;;) {
    uint64_t token;
    if (read(ping_fd, &token, sizeof token) != sizeof token) fail("pong read: %s", strerror(errno));
    if (write(pong_fd, &token, sizeof token) != sizeof token) fail("pong write: %s", strerror(errno));
    step(PONG);
  }
}

/** Keeps values in vector registers over long loops: a lost floating point state changes the sum. */
__attribute__((noreturn)) static void* run_compute(void* unused) {
  (void)unused;
  for (;;) {
    __m128d sum = _mm_setzero_pd();
    __m128d add = _mm_set_pd(0.5, 0.25);
    for (int i = 0; i < 200000; i++) {
      __asm__ volatile("" : "+x"(sum), "+x"(add));
      sum = _mm_add_pd(sum, add);
    }
    double parts[2];
    _mm_storeu_pd(parts, sum);
    if (parts[0] != 50000.0 || parts[1] != 100000.0) fail("vector registers changed");
    step(COMPUTE);
    rest(COMPUTE, 4);
  }
}

/** Holds the recursive mutex nearly always, twice over: a copy with another tid must still be its owner. */
__attribute__((noreturn)) static void* run_recursive(void* argument) {
  const enum role role = (enum role)(intptr_t)argument;
  for (;;) {
    expect(pthread_mutex_lock(&recursive), "recursive lock");
    expect(pthread_mutex_lock(&recursive), "recursive lock again");
    usleep(500);
    expect(pthread_mutex_unlock(&recursive), "recursive unlock");
    expect(pthread_mutex_unlock(&recursive), "recursive unlock again");
    step(role);
    usleep(50);
  }
}

__attribute__((noreturn)) static void* run_writer(void* unused) {
  (void)unused;
  for (;;) {
    expect(pthread_rwlock_wrlock(&rwlock), "wrlock");
    usleep(300);
    expect(pthread_rwlock_unlock(&rwlock), "rwlock unlock");
    expect(pthread_rwlock_rdlock(&rwlock), "rdlock");
    expect(pthread_rwlock_unlock(&rwlock), "rwlock unlock");
    step(WRITER);
  }
}

__attribute__((noreturn)) static void* run_poll(void* unused) {
  (void)unused;
  for (;;) {
    struct pollfd one = {.fd = poll_fd, .events = POLLIN};
    const int ready = poll(&one, 1, 20);
    if (ready < 0 && errno != EINTR) fail("poll: %s", strerror(errno));
    uint64_t value;
    if (ready > 0 && read(poll_fd, &value, sizeof value) != sizeof value)
      fail("poll woke for another's event");
    step(POLL);
  }
}

/** Ends when told, in the process where it was told. */
static void* run_leaver(void* unused) {
  (void)unused;
  pthread_mutex_lock(&mutex);
  while (leave_generation == 0) pthread_cond_wait(&cond, &mutex);
  pthread_mutex_unlock(&mutex);
  return (void*)42;
}

static void* run_new(void* argument) {
  local_magic = 99;
  *(int*)argument = (int)syscall(SYS_gettid);
  free(malloc(100000));
  expect(pthread_kill(main_thread, SIGUSR1), "pthread_kill of the main thread");
  return argument;
}

static void on_signal(int signal) {
  (void)signal;
  __atomic_add_fetch(&signals_seen, 1, __ATOMIC_RELAXED);
}

static void check_progress(void) {
  uint64_t before[ROLES];
  memcpy(before, (const void*)progress, sizeof before);
  for (int waited = 0; waited < WAIT_MS; waited++) {
    pthread_mutex_lock(&mutex);
    cond_generation++;
    pthread_cond_broadcast(&cond);
    pthread_mutex_unlock(&mutex);
    const uint64_t one = 1;
    if (write(poll_fd, &one, sizeof one) != sizeof one) fail("poll write");
    bool all = true;
    for (int role = 0; role < ROLES; role++) all &= progress[role] > before[role] + 1;
    if (all || failure[0] != '\0') return;
    usleep(1000);
  }
  for (int role = 0; role < ROLES; role++) {
    if (progress[role] <= before[role] + 1) fail("%s stands still", role_names[role]);
  }
}

static void check_main_thread(void) {
  if (syscall(SYS_gettid) != getpid()) fail("the main thread is not the leader");
  char name[16] = "";
  prctl(PR_GET_NAME, name);
  if (strcmp(name, "subject-main") != 0) fail("the main thread is called %s", name);
  for (int role = 0; role < ROLES; role++) {
    pthread_getname_np(thread_of[role], name, sizeof name);
    if (strcmp(name, role_names[role]) != 0) fail("%s is called %s", role_names[role], name);
  }
}

static int seen_signals(void) {
  return __atomic_load_n(&signals_seen, __ATOMIC_RELAXED);
}

static void check_signals(void) {
  __atomic_store_n(&signals_seen, 0, __ATOMIC_RELAXED);
  for (int role = 0; role < ROLES; role++) expect(pthread_kill(thread_of[role], SIGUSR1), "pthread_kill");
  for (int waited = 0; seen_signals() < ROLES && waited < WAIT_MS; waited++) usleep(1000);
  if (seen_signals() != ROLES) fail("%d of %d signals arrived", seen_signals(), ROLES);
  raise(SIGUSR1);
  if (seen_signals() != ROLES + 1) fail("raise did not arrive");
  struct signalfd_siginfo info;
  kill(getpid(), SIGUSR2);
  struct pollfd one = {.fd = signal_fd, .events = POLLIN};
  if (poll(&one, 1, WAIT_MS) != 1 || read(signal_fd, &info, sizeof info) != sizeof info)
    fail("signalfd is silent");
  else if (info.ssi_signo != SIGUSR2)
    fail("signalfd gave signal %u", info.ssi_signo);
}

static void check_new_thread(void) {
  int tid = 0;
  pthread_t thread;
  expect(pthread_create(&thread, NULL, run_new, &tid), "pthread_create");
  void* result = NULL;
  expect(pthread_join(thread, &result), "pthread_join");
  if (result != &tid || tid == 0) fail("a new thread did not run");
}

/** A rebuilt thread ends and is joined: the kernel must clear and wake the tid that libc waits on. */
static void check_leaver(void) {
  pthread_mutex_lock(&mutex);
  leave_generation = 1;
  pthread_cond_broadcast(&cond);
  pthread_mutex_unlock(&mutex);
  void* result = NULL;
  struct timespec limit;
  clock_gettime(CLOCK_REALTIME, &limit);
  limit.tv_sec += 5;
  expect(pthread_timedjoin_np(leaver, &result, &limit), "join of a rebuilt thread");
  if (result != (void*)42) fail("a rebuilt thread returned something else");
  leave_generation = 0;
  expect(pthread_create(&leaver, NULL, run_leaver, NULL), "pthread_create");
}

static void check_eventfds(void) {
  uint64_t value = 0;
  if (read(probe_fd, &value, sizeof value) != sizeof value) fail("probe: %s", strerror(errno));
  if (value != PROBE_COUNT) fail("probe had %lu", (unsigned long)value);
  // Two numbers, one eventfd: what is written to one is read from the other.
  value = PROBE_COUNT;
  if (write(probe_alias_fd, &value, sizeof value) != sizeof value) fail("probe alias: %s", strerror(errno));
  if (read(probe_fd, &value, sizeof value) != sizeof value) fail("the probe and its alias are two eventfds");
  value = PROBE_COUNT;
  if (write(probe_fd, &value, sizeof value) != sizeof value) fail("probe: %s", strerror(errno));
  for (int i = 0; i < 3; i++) {
    if (read(semaphore_fd, &value, sizeof value) != sizeof value || value != 1)
      fail("the semaphore lost its flag");
  }
  if (read(semaphore_fd, &value, sizeof value) >= 0 || errno != EAGAIN)
    fail("the semaphore is not non-blocking");
  value = 3;
  if (write(semaphore_fd, &value, sizeof value) != sizeof value) fail("semaphore: %s", strerror(errno));
}

/** Makes this process one that cannot be copied. */
static void make_odd(const char* what) {
  struct itimerspec never = {.it_value.tv_sec = 1000};
  if (strcmp(what, "epoll") == 0) {
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll_create1(0), EPOLL_CTL_ADD, probe_fd, &event);
  } else if (strcmp(what, "epoll-empty") == 0) {
    epoll_create1(0);
  } else if (strcmp(what, "timerfd") == 0) {
    timerfd_settime(timerfd_create(CLOCK_MONOTONIC, 0), 0, &never, NULL);
  } else if (strcmp(what, "inotify") == 0) {
    inotify_init1(0);
  } else if (strcmp(what, "pidfd") == 0) {
    syscall(SYS_pidfd_open, getpid(), 0);
  } else if (strcmp(what, "userfaultfd") == 0) {
    syscall(SYS_userfaultfd, 0);
  } else if (strcmp(what, "pipe") == 0) {
    int ends[2];
    if (pipe(ends) != 0) fail("pipe");
  } else if (strcmp(what, "file") == 0) {
    fileno(tmpfile());
  } else if (strcmp(what, "timer") == 0) {
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    timer_create(CLOCK_MONOTONIC, &event, &timer);
  } else {
    fail("nothing known as %s", what);
  }
}

static void make_thread(enum role role, void* (*run)(void*)) {
  expect(pthread_create(&thread_of[role], NULL, run, (void*)(intptr_t)role), "pthread_create");
  pthread_setname_np(thread_of[role], role_names[role]);
}

static void set_up(void) {
  prctl(PR_SET_NAME, "subject-main");
  main_thread = pthread_self();
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
  pthread_mutex_init(&recursive, &attributes);
  signal(SIGUSR1, on_signal);
  ping_fd = eventfd(0, EFD_CLOEXEC);
  pong_fd = eventfd(0, EFD_CLOEXEC);
  probe_fd = eventfd(PROBE_COUNT, EFD_CLOEXEC | EFD_NONBLOCK);
  probe_alias_fd = dup(probe_fd);
  semaphore_fd = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
  poll_fd = eventfd(0, EFD_NONBLOCK);
  // As QEMU does: everything blocked before threads are made, a signalfd for the rest.
  sigset_t all;
  sigfillset(&all);
  sigdelset(&all, SIGUSR1);
  sigdelset(&all, SIGSEGV);
  pthread_sigmask(SIG_SETMASK, &all, NULL);
  sigset_t usr2;
  sigemptyset(&usr2);
  sigaddset(&usr2, SIGUSR2);
  signal_fd = signalfd(-1, &usr2, SFD_CLOEXEC | SFD_NONBLOCK);
  pthread_mutex_lock(&mutex);  // so that no thread reads thread_of before it is complete
  make_thread(COND, run_cond);
  make_thread(SLEEP, run_sleep);
  make_thread(HAMMER_A, run_hammer);
  make_thread(HAMMER_B, run_hammer);
  make_thread(PING, run_ping);
  make_thread(PONG, run_pong);
  make_thread(COMPUTE, run_compute);
  make_thread(RECURSIVE_A, run_recursive);
  make_thread(RECURSIVE_B, run_recursive);
  make_thread(WRITER, run_writer);
  make_thread(POLL, run_poll);
  pthread_mutex_unlock(&mutex);
  expect(pthread_create(&leaver, NULL, run_leaver, NULL), "pthread_create");
}

static void answer(const char* command) {
  char reply[300] = "ok\n";
  uint8_t* heap;
  if (strcmp(command, "check") == 0) {
    check_progress();
    check_main_thread();
    check_signals();
    check_new_thread();
    check_leaver();
    check_eventfds();
    check_progress();
  } else if (strcmp(command, "ids") == 0) {
    snprintf(reply, sizeof reply, "ok pid=%d ppid=%d pgid=%d getenv=%s\n", getpid(), getppid(), getpgrp(),
             getenv("LD_PRELOAD") == NULL ? "clear" : "set");
  } else if (strcmp(command, "dontfork") == 0) {
    heap = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (madvise(heap, 4096, MADV_DONTFORK) != 0) fail("madvise");
    heap[0] = 77;
    snprintf(reply, sizeof reply, "ok %lu\n", (unsigned long)heap);
  } else if (strncmp(command, "peek ", 5) == 0) {
    snprintf(reply, sizeof reply, "ok %d\n", *(uint8_t*)strtoul(command + 5, NULL, 10));
  } else if (strncmp(command, "odd ", 4) == 0) {
    make_odd(command + 4);
  } else {
    fail("unknown command %s", command);
  }
  if (failure[0] != '\0') snprintf(reply, sizeof reply, "fail %s\n", failure);
  if (write(COMMAND_FD, reply, strlen(reply)) != (ssize_t)strlen(reply)) _exit(3);
}

int main(void) {
  set_up();
  char line[256];
  for (;;) {
    struct pollfd one = {.fd = COMMAND_FD, .events = POLLIN};
    if (poll(&one, 1, -1) < 0 && errno != EINTR) return 1;
    const ssize_t bytes = read(COMMAND_FD, line, sizeof line - 1);
    // The driver is gone. If it had us told to die with it, that comes first; else nobody would end us.
    if (bytes == 0) return (int)sleep(3);
    if (bytes < 0) continue;
    line[bytes] = '\0';
    line[strcspn(line, "\n")] = '\0';
    answer(line);
  }
}
