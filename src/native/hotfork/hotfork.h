// The hot-fork shim: preloaded into a virtual machine monitor, it forks that whole process, threads and all.
//
//   server.c    the control thread: packets in, packets out
//   park.c      stops every thread inside a signal handler, lets them go again
//   fork.c      one child: clone(2), then its first steps
//   rebuild.c   in a child, makes the threads anew and sends each back into its handler's frame
//   fds.c       what each descriptor is, and what a child gets in its place
//   thread.c    where libc keeps a thread's tid; rseq
//   locks.c     owner fields of locks that hold a tid
//   affinity.c  a child's first moments on one processor
//   tasks.c     lists the threads of this process
//   clock.c     stops the guest's clocks while frozen
//   memory.c    makes the next forks cheap
//   ram.c       guest memory: shared in QEMU's eyes, private in truth, filled on demand
//   disk.c      a root disk that is still being fetched: reads wait for their blocks
//   jail.c      an empty root, another user, no capability
//   seccomp.c   the system calls that are left
//   tap.c       what a tap was told, for the tap that takes its place
//   intercept.c calls of the host program that would break all this
#ifndef FORKD_HOTFORK_HOTFORK_H_
#define FORKD_HOTFORK_HOTFORK_H_

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <ucontext.h>

#include "protocol.h"

#define HF_INTERNAL __attribute__((visibility("hidden")))
#define HF_EXPORT __attribute__((visibility("default")))

enum { THREADS_MAX = 256, HELD_LOCKS_MAX = 32 };

/** Why something was refused; sent as HF_REFUSED. */
struct refusal {
  enum hf_code code;
  int number;
  const char* reason;
};

/** Locks with a tid in them that one thread may hold. Kept per thread, read by the shim while the thread is
 * parked. */
struct held_locks {
  uint32_t count;
  /** Address of the lock; the lowest bit tells a read-write lock from a mutex. */
  uintptr_t lock[HELD_LOCKS_MAX];
};

/** One parked thread: all that is needed to make it again in a child. Filled by the thread itself, in its
 * handler. */
struct thread {
  int tid;
  /** FS base: the libc thread descriptor and the thread-local storage below it. */
  uintptr_t tcb;
  /** The frame the kernel pushed for our signal; rt_sigreturn on it resumes the thread. */
  ucontext_t* context;
  void* robust_list;
  size_t robust_list_bytes;
  struct held_locks* locks;
  unsigned long timer_slack_ns;
  char name[16];
  /** Set when it differs from the control thread's. */
  bool own_affinity;
  cpu_set_t affinity;
};

struct threads {
  uint32_t count;
  uint32_t park_us;
  struct thread thread[THREADS_MAX];
};

// park.c
HF_INTERNAL extern struct threads threads;
HF_INTERNAL int park_signal(void);
HF_INTERNAL bool park_init(void);
/** Parks every thread but the caller. On refusal all run again. */
HF_INTERNAL bool park_all(struct refusal* why);
HF_INTERNAL void park_release(void);
/** What each thread does when it is parked, from now on; NULL for nothing. */
HF_INTERNAL void park_with(void (*task)(void));
/** In a child: opens the gate, which was copied closed. */
HF_INTERNAL void park_forget_round(void);
HF_INTERNAL struct thread* park_main_thread(void);

// tasks.c
/** Calls `visit` with the tid of each thread but the caller, until it returns false. Returns 0 or -errno. */
HF_INTERNAL long each_other_thread(bool (*visit)(int tid));

// thread.c
HF_INTERNAL bool thread_learn_layout(void);
HF_INTERNAL uintptr_t thread_tcb(void);
HF_INTERNAL int* thread_tid_field(uintptr_t tcb);
HF_INTERNAL bool thread_layout_holds(const struct thread* thread);
HF_INTERNAL void rseq_register(uintptr_t tcb);
HF_INTERNAL void rseq_unregister(uintptr_t tcb);

// locks.c
HF_INTERNAL struct held_locks* locks_of_this_thread(void);
HF_INTERNAL void locks_change_owner(struct held_locks* locks, int from, int to);

// clock.c
HF_INTERNAL bool clock_init(void);
HF_INTERNAL void clock_stop(void);
HF_INTERNAL void clock_go(void);

// fds.c
struct descriptor {
  int fd;
  enum hf_kind kind;
  enum hf_disposition disposition;
  int flags;
  bool cloexec;
  /** eventfd: identity (two numbers may share one), counter, semaphore flag. */
  long eventfd_id;
  uint64_t count;
  bool semaphore;
  /** signalfd. */
  uint64_t sigmask;
  /** What a child gets, as the FORK request under way says; an entry index, or -1. */
  int entry;
};

struct descriptors {
  uint32_t count;
  struct descriptor descriptor[HF_DESCRIPTORS_MAX];
};

HF_INTERNAL extern struct descriptors descriptors;
/** Lists and sorts out every open descriptor. */
/** Tells a child's own tap what the one that it replaces was told. */
HF_INTERNAL void tap_settle(int fd);

HF_INTERNAL bool fds_scan(struct refusal* why);
/** Descriptors that came with the request under way: not the program's, so no scan sees them. */
HF_INTERNAL void fds_ignore(const int* given, uint32_t count);
/** Reads the eventfd counters again, and checks that the set of descriptors is still the scanned one. All
 * threads parked. */
HF_INTERNAL bool fds_settle(struct refusal* why);
/** Ties the request's entries to the table. */
HF_INTERNAL bool fds_plan(const struct hf_fork* request, struct refusal* why);
/** Sources of one child's descriptors, by entry: what it gets, and what goes to the engine. -1 for none. */
struct fd_sources {
  uint32_t count;
  uint32_t how[HF_ENTRIES_MAX];
  int child_end[HF_ENTRIES_MAX];
  int engine_end[HF_ENTRIES_MAX];
};
HF_INTERNAL bool fds_make_sources(const struct hf_fork* request, const int* given, struct fd_sources* sources,
                                  struct refusal* why);
HF_INTERNAL void fds_close_sources(const struct fd_sources* sources, bool engine_ends);
/** In the child, first of all: from here on it speaks on its own control socket, not on the template's. */
HF_INTERNAL bool fds_take_control(const struct fd_sources* sources);
/** In the child: puts every descriptor in its place, closes the sources. */
HF_INTERNAL bool fds_apply(const struct fd_sources* sources, struct refusal* why);

// fork.c
struct birth {
  struct fd_sources sources;
  bool frozen;
  /** Keep the child on one processor while it starts: its number in a batch, or -1 for where it is born. */
  bool pin;
  int spread;
  /** HF_FORK_TIED. */
  bool tied;
  /** Directory of a cgroup v2 to be born in, or -1. */
  int cgroup_into;
  int pidfd;
};
HF_INTERNAL bool fork_init(void);
/** Sets this process's death signal again, when it had one. False: its engine is gone, as far as `stat_fd`
 * tells, its own /proc/self/stat from outside, or -1. */
HF_INTERNAL bool fork_die_with_engine(int stat_fd);
/** Makes one child of `birth`. Returns its pid, or -errno. */
HF_INTERNAL long fork_child(struct birth* birth);
HF_INTERNAL long clone_on_stack(unsigned long flags, uintptr_t stack, int* parent_tid, int* child_tid,
                                uintptr_t tls, void (*run)(void*), void* argument);
_Noreturn HF_INTERNAL void run_on_stack(uintptr_t stack, void (*run)(void*), void* argument);

// rebuild.c
/** Makes all parked threads run, in a process that has only the calling one; the caller becomes the main
 * thread. */
_Noreturn HF_INTERNAL void rebuild_all(void* unused);
/** Waits until the threads that rebuild_all made have read what they need of `threads`. */
HF_INTERNAL void rebuild_settle(void);
/** Top of a stack nobody else uses: the rebuilder's own. */
HF_INTERNAL uintptr_t nursery_top(void);

// affinity.c
/** In a child: all threads to come stay on one processor, until affinity_unpin. `spread`: see struct birth.
 */
HF_INTERNAL void affinity_pin(int spread);
HF_INTERNAL void affinity_unpin(void);
/** Milliseconds until the pin should be lifted, or -1 when there is none. */
HF_INTERNAL int affinity_due_ms(void);

// memory.c
HF_INTERNAL void memory_trim(void);
HF_INTERNAL bool memory_copyable(struct refusal* why);

// ram.c
/** Learns which file is guest memory. False when the descriptor named in the environment is none. */
HF_INTERNAL bool ram_init(void);

// disk.c
/** Learns what has arrived of the root disk. False when the memories named in the environment cannot be had.
 */
HF_INTERNAL bool disk_init(void);

// jail.c
/** Before the program's own threads: gives up for good what an exec could give back. */
HF_INTERNAL void jail_init(void);
/** Of the calling thread. */
HF_INTERNAL void jail_drop_capabilities(void);
/** Goes to jail, all threads. */
HF_INTERNAL bool jail_enter(const struct hf_jail* request, struct refusal* why);

// seccomp.c
HF_INTERNAL bool seccomp_install(bool sockets, struct refusal* why);

// server.c
struct control {
  int fd;
  int pid;
  enum hf_phase phase;
  /** The parked threads exist as kernel threads here (false in a child that was born frozen). */
  bool threads_exist;
  /** From outside the jail, or -1: /dev/null, and /proc/self/pagemap of the process that was jailed. */
  int null_fd;
  int pagemap_fd;
  /** What keeps the first process of the pid namespace there, or -1; every copy holds it. */
  int line_fd;
  /** Ends with its control socket, not with its engine. */
  /** Made by a fork, not started as a program. */
  bool copy;
  bool tied;
  bool clock_available;
  uintptr_t tcb;
  /** Where the control thread's stack is when it waits for a packet; a new one starts over from here. */
  uintptr_t stack;
  int64_t frozen_at_ns;
  uint64_t children;
  cpu_set_t affinity;
};
HF_INTERNAL extern struct control control;
/** The control thread's life, from `control.stack` down. */
_Noreturn HF_INTERNAL void control_loop(void* unused);
/** The last word of a child that cannot start; ends the process. */
_Noreturn HF_INTERNAL void child_fail(const struct refusal* why);

/** Exit status of a child that could not be completed. Its reason was sent on its control socket. */
enum { CHILD_FAILED_STATUS = 71 };

#endif  // FORKD_HOTFORK_HOTFORK_H_
