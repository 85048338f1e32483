// The guest's clocks stand still while its monitor is frozen.
//
// A template may be frozen for hours; its children must not see that time pass, or every timer in the guest
// fires at once and its watchdogs bark. QEMU's virtual clock is CLOCK_MONOTONIC plus an offset, the guest's
// time-stamp counter is the host's rdtsc plus another. clock_gettime(2) could be intercepted, an inlined
// rdtsc cannot. But QEMU has the very functions that QMP `stop` and `cont` use for both, and exports them to
// its loadable modules: they fold the elapsed time into the offsets, and cost nanoseconds. They lock only the
// spin lock of the two offsets, and are called here when no thread is parked, so that lock is always given up
// in the end.
#include <dlfcn.h>

#include "hotfork.h"

static void (*enable_ticks)(void);
static void (*disable_ticks)(void);
static bool (*is_running)(void);
static bool stopped;

bool clock_init(void) {
  *(void**)&enable_ticks = dlsym(RTLD_DEFAULT, "cpu_enable_ticks");
  *(void**)&disable_ticks = dlsym(RTLD_DEFAULT, "cpu_disable_ticks");
  *(void**)&is_running = dlsym(RTLD_DEFAULT, "runstate_is_running");
  return enable_ticks != NULL && disable_ticks != NULL && is_running != NULL;
}

void clock_stop(void) {
  // A guest that the engine stopped by QMP has its clocks stopped already, and must not find them running
  // later.
  if (enable_ticks == NULL || disable_ticks == NULL || is_running == NULL || !is_running()) return;
  disable_ticks();
  stopped = true;
}

void clock_go(void) {
  if (!stopped) return;
  stopped = false;
  enable_ticks();
}
