// Stops every thread inside a signal handler.
//
// Each thread writes down what its copy will need and waits on one futex, the gate. It may be anywhere: in a
// system call, in libc, in translated guest code. Since every thread is copied from the very point where it
// stood, locks and half-done work stay as consistent in each copy as they are here.
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>

#include "hotfork.h"
#include "sys.h"

enum { PARK_TIMEOUT_MS = 3000, ROUND_MS = 20, KERNEL_CPUSET_BYTES = sizeof(cpu_set_t) };

struct threads threads;

/** Odd while closed. A new number each time, so that a thread slow to leave the last round cannot be caught
 * by the next. */
static uint32_t gate;
/** Slots taken, and slots filled, by handlers in this round. */
static uint32_t arrived;
static uint32_t parked;
/** The control thread sleeps on `parked` until it reaches this. */
static uint32_t expected;

static struct {
  uint32_t count;
  int tid[THREADS_MAX];
} signalled;

// The top of the range is what programs use least: QEMU takes SIGUSR1, glibc the two lowest.
int park_signal(void) {
  return SIGRTMAX - 3;
}

static void describe_self(struct thread* self, ucontext_t* context) {
  self->tid = (int)sys(SYS_gettid);
  self->tcb = thread_tcb();
  self->context = context;
  self->locks = locks_of_this_thread();
  sys(SYS_get_robust_list, 0, &self->robust_list, &self->robust_list_bytes);
  sys(SYS_prctl, PR_GET_NAME, self->name);
  // Slack is per thread, and a new thread would take that of the one which rebuilds it. QEMU sets its main
  // loop's to 1 ns.
  self->timer_slack_ns = (unsigned long)sys(SYS_prctl, PR_GET_TIMERSLACK);
  memset(&self->affinity, 0, sizeof self->affinity);
  sys(SYS_sched_getaffinity, 0, KERNEL_CPUSET_BYTES, &self->affinity);
  self->own_affinity = memcmp(&self->affinity, &control.affinity, sizeof self->affinity) != 0;
}

static void (*parking_task)(void);

void park_with(void (*task)(void)) {
  parking_task = task;
}

static void on_park(int signal, siginfo_t* info, void* context) {
  (void)signal, (void)info;
  const uint32_t round = __atomic_load_n(&gate, __ATOMIC_ACQUIRE);
  if (round % 2 == 0) return;  // a stray signal, or one that came after its round was given up
  const uint32_t slot = __atomic_fetch_add(&arrived, 1, __ATOMIC_ACQ_REL);
  if (slot >= THREADS_MAX) return;
  describe_self(&threads.thread[slot], context);
  if (parking_task != NULL) parking_task();
  if (__atomic_add_fetch(&parked, 1, __ATOMIC_ACQ_REL) >= __atomic_load_n(&expected, __ATOMIC_ACQUIRE)) {
    futex_wake_all(&parked);
  }
  while (__atomic_load_n(&gate, __ATOMIC_ACQUIRE) == round) futex_wait(&gate, round, NULL);
}

bool park_init(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_park;
  // SA_RESTART: a futex wait or read starts again on return. ppoll, nanosleep and timed futexes give EINTR
  // whatever the flag, which their callers handle for any other signal too. No SA_ONSTACK: a copy needs the
  // frame where the thread stood. All signals blocked meanwhile: no other handler may run on top of a parked
  // one.
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigfillset(&action.sa_mask);
  return sigaction(park_signal(), &action, NULL) == 0;
}

static bool too_many;
static int fresh;
static bool alive[THREADS_MAX];

static bool signal_newcomer(int tid) {
  for (uint32_t i = 0; i < signalled.count; i++) {
    if (signalled.tid[i] != tid) continue;
    alive[i] = true;
    return true;
  }
  too_many = signalled.count == THREADS_MAX;
  if (too_many) return false;
  alive[signalled.count] = true;
  signalled.tid[signalled.count++] = tid;
  __atomic_store_n(&expected, signalled.count, __ATOMIC_RELEASE);
  if (sys(SYS_tgkill, control.pid, tid, park_signal()) == 0) fresh++;
  return true;
}

/**
 * Signals every thread that has not been signalled yet, and forgets those that have ended since. Returns the
 * number newly signalled, or -errno.
 */
static int signal_newcomers(void) {
  memset(alive, 0, sizeof alive);
  fresh = 0;
  too_many = false;
  const long result = each_other_thread(signal_newcomer);
  if (result < 0 || too_many) return too_many ? -E2BIG : (int)result;
  uint32_t kept = 0;
  for (uint32_t i = 0; i < signalled.count; i++) {
    if (alive[i]) signalled.tid[kept++] = signalled.tid[i];
  }
  signalled.count = kept;
  __atomic_store_n(&expected, kept, __ATOMIC_RELEASE);
  return fresh;
}

/** A signalled thread may end before its handler runs; then its signal dies with it, and the next round
 * notices. */
static void await_parked(void) {
  const struct timespec round = {.tv_nsec = ROUND_MS * 1000000};
  uint32_t now;
  while ((now = __atomic_load_n(&parked, __ATOMIC_ACQUIRE)) < signalled.count) {
    if (futex_wait(&parked, now, &round) == -ETIMEDOUT) return;
  }
}

static bool check_threads(struct refusal* why) {
  for (uint32_t i = 0; i < threads.count; i++) {
    const struct thread* thread = &threads.thread[i];
    if (!thread_layout_holds(thread)) {
      *why = (struct refusal){HF_THREAD, thread->tid,
                              "the thread was not made by libc: its descriptor has no tid"};
      return false;
    }
    if (thread->locks->count > HELD_LOCKS_MAX) {
      *why = (struct refusal){HF_THREAD, thread->tid, "the thread holds too many recursive locks"};
      return false;
    }
  }
  if (park_main_thread() == NULL) {
    *why = (struct refusal){HF_THREAD, control.pid, "the main thread has ended"};
    return false;
  }
  return true;
}

bool park_all(struct refusal* why) {
  const int64_t start = now_ns();
  signalled.count = 0;
  arrived = parked = expected = 0;
  __atomic_add_fetch(&gate, 1, __ATOMIC_ACQ_REL);
  for (;;) {
    const int newcomers = signal_newcomers();
    if (newcomers < 0) {
      *why = newcomers == -E2BIG ? (struct refusal){HF_THREAD, THREADS_MAX, "too many threads"}
                                 : (struct refusal){HF_SYSCALL, -newcomers, "cannot list the threads"};
      break;
    }
    // Done when a whole pass finds nobody new: a thread that was just being made is seen by the pass after
    // it.
    if (newcomers == 0 && parked == signalled.count) {
      threads.count = parked;
      threads.park_us = (uint32_t)((now_ns() - start) / 1000);
      if (!check_threads(why)) break;
      return true;
    }
    await_parked();
    if (now_ns() - start > PARK_TIMEOUT_MS * 1000000LL) {
      *why = (struct refusal){HF_THREAD, 0,
                              "a thread would not park: it blocks our signal, or hangs in the kernel"};
      break;
    }
  }
  park_release();
  return false;
}

void park_release(void) {
  __atomic_add_fetch(&gate, 1, __ATOMIC_ACQ_REL);
  futex_wake_all(&gate);
}

void park_forget_round(void) {
  // A copy of a parked thread never looks at the gate again, so here it only has to be open.
  __atomic_add_fetch(&gate, gate % 2, __ATOMIC_ACQ_REL);
}

struct thread* park_main_thread(void) {
  // The slot is also searched in frozen children, whose own pid is another: the main thread is known by its
  // tid there.
  static int main_tid;
  if (control.threads_exist) main_tid = control.pid;
  for (uint32_t i = 0; i < threads.count; i++) {
    if (threads.thread[i].tid == main_tid) return &threads.thread[i];
  }
  return NULL;
}
