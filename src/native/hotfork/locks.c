// Locks that remember their owner by tid.
//
// A copied thread has a new tid. Recursive and error-checking mutexes compare the owner they stored with the
// tid of whoever unlocks (glibc nptl/pthread_mutex_unlock.c returns EPERM, QEMU aborts on it), and a
// read-write lock tells by the writer's tid whether an unlock is the writer's (nptl/pthread_rwlock_unlock.c).
// A thread may be parked while it holds one: QEMU holds its AioContext's recursive mutex through a whole disk
// request. So each thread keeps a list of such locks, and its copy puts its new tid into those that carry the
// old one. Plain mutexes are never checked.
#include <dlfcn.h>
#include <pthread.h>

#include "hotfork.h"

enum { RWLOCK_TAG = 1 };

// Initial-exec: reading it takes no lock and allocates nothing, which a handler needs. A preloaded library
// may use it.
static __thread struct held_locks held __attribute__((tls_model("initial-exec")));

struct held_locks* locks_of_this_thread(void) {
  return &held;
}

static int (*real_mutex_lock)(pthread_mutex_t*);
static int (*real_mutex_trylock)(pthread_mutex_t*);
static int (*real_mutex_unlock)(pthread_mutex_t*);
static int (*real_rwlock_wrlock)(pthread_rwlock_t*);
static int (*real_rwlock_trywrlock)(pthread_rwlock_t*);
static int (*real_rwlock_unlock)(pthread_rwlock_t*);

__attribute__((constructor(101))) static void resolve(void) {
  *(void**)&real_mutex_lock = dlsym(RTLD_NEXT, "pthread_mutex_lock");
  *(void**)&real_mutex_trylock = dlsym(RTLD_NEXT, "pthread_mutex_trylock");
  *(void**)&real_rwlock_wrlock = dlsym(RTLD_NEXT, "pthread_rwlock_wrlock");
  *(void**)&real_rwlock_trywrlock = dlsym(RTLD_NEXT, "pthread_rwlock_trywrlock");
  *(void**)&real_rwlock_unlock = dlsym(RTLD_NEXT, "pthread_rwlock_unlock");
  *(void**)&real_mutex_unlock = dlsym(RTLD_NEXT, "pthread_mutex_unlock");
}

// Another library's constructor may lock before ours has run. The last pointer resolved stands for all.
static inline void resolved(void) {
  if (__builtin_expect(real_mutex_unlock == NULL, 0)) resolve();
}

static inline bool owner_matters(const pthread_mutex_t* mutex) {
  const int type = mutex->__data.__kind & 3;
  return type == PTHREAD_MUTEX_RECURSIVE || type == PTHREAD_MUTEX_ERRORCHECK;
}

// An entry is made before its lock is taken and removed after it is given up, so that a thread parked in
// between is covered: the list may name a lock that is not held, never miss one that is.
static inline void remember(uintptr_t lock) {
  if (held.count < HELD_LOCKS_MAX) held.lock[held.count] = lock;
  held.count++;
  __asm__ volatile("" ::: "memory");
}

static void forget(uintptr_t lock) {
  __asm__ volatile("" ::: "memory");
  if (held.count > HELD_LOCKS_MAX) {
    held.count--;
    return;
  }
  for (uint32_t i = held.count; i-- > 0;) {
    if (held.lock[i] != lock) continue;
    held.lock[i] = held.lock[held.count - 1];
    held.count--;
    return;
  }
}

HF_EXPORT int pthread_mutex_lock(pthread_mutex_t* mutex) {
  resolved();
  if (!owner_matters(mutex)) return real_mutex_lock(mutex);
  remember((uintptr_t)mutex);
  const int error = real_mutex_lock(mutex);
  if (error != 0) forget((uintptr_t)mutex);
  return error;
}

HF_EXPORT int pthread_mutex_trylock(pthread_mutex_t* mutex) {
  resolved();
  if (!owner_matters(mutex)) return real_mutex_trylock(mutex);
  remember((uintptr_t)mutex);
  const int error = real_mutex_trylock(mutex);
  if (error != 0) forget((uintptr_t)mutex);
  return error;
}

HF_EXPORT int pthread_mutex_unlock(pthread_mutex_t* mutex) {
  resolved();
  // Read before unlocking: after it the memory may be gone.
  const bool matters = owner_matters(mutex);
  const int error = real_mutex_unlock(mutex);
  if (matters && error == 0) forget((uintptr_t)mutex);
  return error;
}

HF_EXPORT int pthread_rwlock_wrlock(pthread_rwlock_t* lock) {
  resolved();
  remember((uintptr_t)lock | RWLOCK_TAG);
  const int error = real_rwlock_wrlock(lock);
  if (error != 0) forget((uintptr_t)lock | RWLOCK_TAG);
  return error;
}

HF_EXPORT int pthread_rwlock_trywrlock(pthread_rwlock_t* lock) {
  resolved();
  remember((uintptr_t)lock | RWLOCK_TAG);
  const int error = real_rwlock_trywrlock(lock);
  if (error != 0) forget((uintptr_t)lock | RWLOCK_TAG);
  return error;
}

HF_EXPORT int pthread_rwlock_unlock(pthread_rwlock_t* lock) {
  resolved();
  const int error = real_rwlock_unlock(lock);
  // A reader is not on the list; forgetting what is not there does nothing.
  forget((uintptr_t)lock | RWLOCK_TAG);
  return error;
}

void locks_change_owner(struct held_locks* locks, int from, int to) {
  for (uint32_t i = 0; i < locks->count; i++) {
    const uintptr_t address = locks->lock[i] & ~(uintptr_t)RWLOCK_TAG;
    int* owner = (locks->lock[i] & RWLOCK_TAG) != 0 ? &((pthread_rwlock_t*)address)->__data.__cur_writer
                                                    : &((pthread_mutex_t*)address)->__data.__owner;
    if (*owner == from) *owner = to;
  }
}
