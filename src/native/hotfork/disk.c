// A root disk that is still being fetched: reads of it wait for the blocks that are not here.
//
// QEMU reads a disk with aio=threads by preadv64 and pread64, in threads of its own. The file has its full
// size, with holes where nothing has come yet; what is read there would be zeros, so nobody may read there.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "arrivals.h"
#include "hotfork.h"
#include "sys.h"

static struct arrival_states* states;
static struct arrival_asks* asks;

static void* map_whole(int fd, int protection) {
  struct stat status;
  if (sys(SYS_fstat, fd, &status) != 0) return NULL;
  const long result = sys(SYS_mmap, NULL, status.st_size, protection, MAP_SHARED, fd, 0);
  sys(SYS_close, fd);
  return result < 0 && result > -4096 ? NULL : (void*)result;
}

bool disk_init(void) {
  const char* text = getenv("FORKD_HOTFORK_ARRIVALS");
  int states_fd, asks_fd;
  const bool named = text != NULL && sscanf(text, "%d,%d", &states_fd, &asks_fd) == 2;
  unsetenv("FORKD_HOTFORK_ARRIVALS");
  if (!named) return text == NULL;
  states = map_whole(states_fd, PROT_READ);
  asks = map_whole(asks_fd, PROT_READ | PROT_WRITE);
  return states != NULL && asks != NULL;
}

// Better no machine at all than one that reads zeros.
static _Noreturn void end_here(void) {
  struct stat line = {0};
  if (control.line_fd >= 0) sys(SYS_fstat, control.line_fd, &line);
  const uint64_t self = (uint64_t)line.st_ino << 32 | (uint32_t)sys(SYS_getpid);
  const uint32_t at = __atomic_fetch_add(&asks->victims, 1, __ATOMIC_ACQ_REL);
  __atomic_store_n(&asks->victim[at % ARRIVAL_VICTIMS_MAX], self, __ATOMIC_RELEASE);
  for (;;) sys(SYS_exit_group, CHILD_FAILED_STATUS);
}

static void wait_for(uint32_t item) {
  uint32_t* word = &states->state[item];
  for (;;) {
    const uint32_t state = __atomic_load_n(word, __ATOMIC_ACQUIRE);
    if (state == ARRIVAL_HERE) return;
    if (state == ARRIVAL_LOST) end_here();
    uint32_t unasked = ARRIVAL_UNASKED;
    if (__atomic_compare_exchange_n(&asks->asked[item], &unasked, ARRIVAL_ASKED, false, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE)) {
      __atomic_fetch_add(&asks->bell, 1, __ATOMIC_ACQ_REL);
      sys(SYS_futex, &asks->bell, FUTEX_WAKE, INT32_MAX);
    }
    // Not FUTEX_PRIVATE: the engine wakes. A signal that parks this thread only makes it look again.
    sys(SYS_futex, word, FUTEX_WAIT, state, NULL);
  }
}

static void wait_for_range(int fd, uint64_t offset, uint64_t bytes) {
  if (states == NULL || bytes == 0 || __atomic_load_n(&states->whole, __ATOMIC_ACQUIRE)) return;
  struct stat status;
  if (sys(SYS_fstat, fd, &status) != 0) return;
  if (status.st_dev != states->disk_device || status.st_ino != states->disk_inode) return;
  const uint64_t blocks = states->items - states->first_block;
  const uint64_t last = (offset + bytes - 1) / ARRIVAL_BLOCK_BYTES;
  for (uint64_t block = offset / ARRIVAL_BLOCK_BYTES; block <= last && block < blocks; block++)
    wait_for(states->first_block + (uint32_t)block);
}

static ssize_t returned(long result) {
  if (result >= 0) return result;
  errno = (int)-result;
  return -1;
}

HF_EXPORT ssize_t disk_pread(int fd, void* into, size_t bytes, off_t offset) __asm__("pread64");
HF_EXPORT ssize_t disk_preadv(int fd, const struct iovec* vectors, int count,
                              off_t offset) __asm__("preadv64");

ssize_t disk_pread(int fd, void* into, size_t bytes, off_t offset) {
  wait_for_range(fd, (uint64_t)offset, bytes);
  return returned(sys(SYS_pread64, fd, into, bytes, offset));
}

ssize_t disk_preadv(int fd, const struct iovec* vectors, int count, off_t offset) {
  uint64_t bytes = 0;
  for (int i = 0; i < count; i++) bytes += vectors[i].iov_len;
  wait_for_range(fd, (uint64_t)offset, bytes);
  return returned(sys(SYS_preadv, fd, vectors, count, offset, 0));
}
