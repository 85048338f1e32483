// A process that goes on writing to its memory while somebody copies it as it was at one instant. Descriptor
// 3 is the memory's memfd, 4 a Unix socket. Commands come as lines on standard input; each gets one line: `ok
// ...` or `fail ...`.
//
// Store K fills page K * STEP % pages with the number K, word by word; there is one after the other, from 1
// on. So whoever sees the memory of one instant can tell which store was the last, and what every page must
// hold.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { MEMFD = 3, SOCKET = 4, PAGE = 4096, STEP = 2654435761u % 65536 };

static uint8_t* memory;
static size_t memory_bytes;
static int uffd = -1;
static atomic_ulong stores;
static pthread_mutex_t running = PTHREAD_MUTEX_INITIALIZER;  // held by the writer for each store

static void answer(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  putchar('\n');
  fflush(stdout);
}

static void store(uint64_t number) {
  volatile uint64_t* words = (uint64_t*)(memory + number * STEP % (memory_bytes / PAGE) * PAGE);
  for (size_t word = 0; word < PAGE / sizeof *words; word++) words[word] = number;
}

static void* write_on(void* unused) {
  for (;;) {
    pthread_mutex_lock(&running);
    store(atomic_load(&stores) + 1);
    atomic_fetch_add(&stores, 1);
    pthread_mutex_unlock(&running);
  }
  return unused;
}

// `map shared|private COUNT`: makes the first COUNT stores.
static void do_map(const char* kind, uint64_t count) {
  struct stat st;
  if (fstat(MEMFD, &st) != 0) return answer("fail fstat: %m");
  memory_bytes = (size_t)st.st_size;
  int flags = strcmp(kind, "private") == 0 ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
  memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, flags, MEMFD, 0);
  if (memory == MAP_FAILED) return answer("fail mmap: %m");
  for (uint64_t number = 1; number <= count; number++) store(number);
  atomic_store(&stores, count);
  uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API,
                           .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                       UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMOVE};
  if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0) return answer("fail userfaultfd: %m");
  struct uffdio_register range = {.range = {(uintptr_t)memory, memory_bytes},
                                  .mode = UFFDIO_REGISTER_MODE_WP};
  if (ioctl(uffd, UFFDIO_REGISTER, &range) != 0) return answer("fail UFFDIO_REGISTER: %m");
  answer("ok");
}

// `hand regions`: two regions, which meet in the middle of a chunk.
static void do_hand(void) {
  char text[512];
  size_t first = memory_bytes / 2 + 8 * PAGE;
  snprintf(text, sizeof text,
           "[{\"base_host_virt_addr\":%zu,\"size\":%zu,\"offset\":0,\"page_size_kib\":4096},"
           "{\"base_host_virt_addr\":%zu,\"size\":%zu,\"offset\":%zu,\"page_size_kib\":4096}]",
           (size_t)memory, first, (size_t)memory + first, memory_bytes - first, first);
  struct iovec part = {.iov_base = text, .iov_len = strlen(text)};
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(sizeof(int))];
  } control = {0};
  struct msghdr message = {.msg_iov = &part,
                           .msg_iovlen = 1,
                           .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  control.header.cmsg_level = SOL_SOCKET;
  control.header.cmsg_type = SCM_RIGHTS;
  control.header.cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(&control.header), &uffd, sizeof(int));
  if (sendmsg(SOCKET, &message, MSG_NOSIGNAL) < 0) return answer("fail sendmsg: %m");
  close(uffd);
  answer("ok");
}

static void* drop(void* unused) {
  madvise(memory, memory_bytes / 2, MADV_DONTNEED);
  return unused;
}

int main(void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (int fd = 0; fd <= SOCKET; fd++) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  pthread_t thread;
  char line[256];
  while (fgets(line, sizeof line, stdin)) {
    char kind[100];
    unsigned long long count;
    line[strcspn(line, "\n")] = '\0';
    if (sscanf(line, "map %99s %llu", kind, &count) == 2) {
      do_map(kind, count);
    } else if (strcmp(line, "hand regions") == 0) {
      do_hand();
    } else if (strcmp(line, "write") == 0) {
      pthread_create(&thread, NULL, write_on, NULL);
      answer("ok");
    } else if (strcmp(line, "stop") == 0) {
      pthread_mutex_lock(&running);
      answer("ok %lu", atomic_load(&stores));
    } else if (strcmp(line, "go") == 0) {
      pthread_mutex_unlock(&running);
      answer("ok");
    } else if (strcmp(line, "count") == 0) {
      answer("ok %lu", atomic_load(&stores));
    } else if (strcmp(line, "drop") == 0) {
      // It waits for whoever reads the userfaultfd, so not in this thread.
      pthread_create(&thread, NULL, drop, NULL);
      answer("ok");
    } else {
      answer("fail what is '%s'?", line);
    }
  }
}
