// Preloaded into a virtual machine monitor that is to live as long as somebody holds the other end of a
// socket, whoever that is: its engine, or a keeper after the engine's end. A death signal would bind it to
// the one process that started it. Hot-forked machines have this from the shim (hotfork/server.c).
//
//   FORKD_TETHER_FD   number of the socket
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static int tether;

static void* wait_for_end(void* unused) {
  (void)unused;
  char byte;
  ssize_t got;
  do {
    got = read(tether, &byte, 1);
  } while (got > 0 || (got < 0 && errno == EINTR));
  // No handlers: they are for a machine that is shut down, and may wait for what no longer runs.
  _exit(0);
}

__attribute__((constructor)) static void start(void) {
  const char* number = getenv("FORKD_TETHER_FD");
  if (number == NULL) return;
  tether = atoi(number);
  // Helpers that the program runs must not load this, nor believe the descriptor to be theirs.
  unsetenv("LD_PRELOAD");
  unsetenv("FORKD_TETHER_FD");
  fcntl(tether, F_SETFD, FD_CLOEXEC);
  fcntl(tether, F_SETFL, 0);
  sigset_t all, old;
  pthread_t thread;
  // The program's signals are not this thread's to take.
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  const int error = pthread_create(&thread, NULL, wait_for_end, NULL);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  if (error != 0) {
    fprintf(stderr, "forkd tether: cannot start\n");
    _exit(71);
  }
  pthread_detach(thread);
  pthread_setname_np(thread, "forkd-tether");
}
