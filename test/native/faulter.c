// A process whose memory is served: it maps an image, registers the mapping with userfaultfd(2), hands the
// descriptor over as a VMM does, and touches memory as it is told. Descriptor 3 is the image's memfd, 4 a
// Unix socket. Commands come as lines on standard input; each gets one line: `ok ...` or `fail ...`.
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MEMFD = 3, SOCKET = 4, PAGE = 4096, CHUNK = 16384, THREADS_MAX = 16 };

static uint8_t* memory;
static size_t memory_bytes;
static int uffd = -1;

static void answer(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vprintf(format, arguments);
  va_end(arguments);
  putchar('\n');
  fflush(stdout);
}

/** What the image holds; the same as in faults.ts. */
static uint32_t word_of(size_t page, size_t word) {
  if (page / (CHUNK / PAGE) % 4 == 3 || page % (CHUNK / PAGE) == 1) return 0;
  return ((uint32_t)(page + 1) * 0x9e3779b1u) ^ ((uint32_t)word * 0x85ebca6bu);
}

static bool page_is_right(size_t page) {
  const volatile uint32_t* words = (const uint32_t*)(memory + page * PAGE);
  for (size_t word = 0; word < PAGE / 4; word++)
    if (words[word] != word_of(page, word)) return false;
  return true;
}

static bool page_is_zero(size_t page) {
  const volatile uint32_t* words = (const uint32_t*)(memory + page * PAGE);
  for (size_t word = 0; word < PAGE / 4; word++)
    if (words[word] != 0) return false;
  return true;
}

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void shuffle(uint32_t* numbers, size_t count, uint32_t seed) {
  for (size_t i = count; i > 1; i--) {
    seed = seed * 1664525u + 1013904223u;
    size_t other = (size_t)(((uint64_t)seed * i) >> 32);
    uint32_t kept = numbers[i - 1];
    numbers[i - 1] = numbers[other];
    numbers[other] = kept;
  }
}

// `map private|anonymous FEATURES`: FEATURES is the mask for UFFDIO_API, in hexadecimal.
static void do_map(const char* kind, uint64_t features) {
  struct stat st;
  if (fstat(MEMFD, &st) != 0) return answer("fail fstat: %m");
  memory_bytes = (size_t)st.st_size;
  bool anonymous = strcmp(kind, "anonymous") == 0;
  int flags = MAP_PRIVATE | MAP_NORESERVE | (anonymous ? MAP_ANONYMOUS : 0);
  memory = mmap(NULL, memory_bytes, PROT_READ | PROT_WRITE, flags, anonymous ? -1 : MEMFD, 0);
  if (memory == MAP_FAILED) return answer("fail mmap: %m");
  madvise(memory, memory_bytes, MADV_NOHUGEPAGE);
  uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API, .features = features};
  if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0) return answer("fail userfaultfd: %m");
  struct uffdio_register range = {.range = {(uintptr_t)memory, memory_bytes},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (ioctl(uffd, UFFDIO_REGISTER, &range) != 0) return answer("fail UFFDIO_REGISTER: %m");
  answer("ok");
}

// `hand TEXT`: sends the descriptor, with TEXT or, when that is `regions`, with the handshake. Two regions,
// which meet in the middle of a chunk.
static void do_hand(const char* text) {
  char handshake[512];
  if (strcmp(text, "regions") == 0) {
    size_t first = memory_bytes / 2 / CHUNK * CHUNK + CHUNK / 2;
    snprintf(handshake, sizeof handshake,
             "[{\"base_host_virt_addr\":%zu,\"size\":%zu,\"offset\":0,\"page_size_kib\":4096},"
             "{\"base_host_virt_addr\":%zu,\"size\":%zu,\"offset\":%zu,\"page_size_kib\":4096}]",
             (size_t)memory, first, (size_t)memory + first, memory_bytes - first, first);
    text = handshake;
  }
  struct iovec part = {.iov_base = (char*)text, .iov_len = strlen(text)};
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

struct checking {
  const uint32_t* pages;
  size_t count;
  size_t wrong;
};

static void* check_pages(void* argument) {
  struct checking* checking = argument;
  for (size_t i = 0; i < checking->count; i++)
    if (!page_is_right(checking->pages[i])) checking->wrong++;
  return NULL;
}

static uint32_t* some_pages(size_t first, size_t count, uint32_t seed) {
  uint32_t* pages = malloc((count ? count : 1) * sizeof *pages);
  for (size_t i = 0; i < count; i++) pages[i] = (uint32_t)(first + i);
  shuffle(pages, count, seed);
  return pages;
}

// `check FIRST COUNT THREADS SEED`: every byte of these pages, by threads that each go through all of them in
// an order of their own.
static void do_check(size_t first, size_t count, size_t threads, uint32_t seed) {
  pthread_t running[THREADS_MAX];
  struct checking checking[THREADS_MAX];
  if (threads > THREADS_MAX) return answer("fail too many threads");
  for (size_t i = 0; i < threads; i++) {
    checking[i] = (struct checking){some_pages(first, count, seed + (uint32_t)i), count, 0};
    pthread_create(&running[i], NULL, check_pages, &checking[i]);
  }
  size_t wrong = 0;
  for (size_t i = 0; i < threads; i++) {
    pthread_join(running[i], NULL);
    wrong += checking[i].wrong;
    free((void*)checking[i].pages);
  }
  answer(wrong == 0 ? "ok" : "fail %zu pages are wrong", wrong);
}

struct timing {
  const uint32_t* chunks;
  size_t count;
  uint32_t* took_ns;
};

static void* time_chunks(void* argument) {
  struct timing* timing = argument;
  for (size_t i = 0; i < timing->count; i++) {
    const volatile uint8_t* byte =
        memory + (size_t)timing->chunks[i] * CHUNK + timing->chunks[i] % (CHUNK / PAGE) * PAGE;
    uint64_t began = now_ns();
    (void)*byte;
    timing->took_ns[i] = (uint32_t)(now_ns() - began);
  }
  return NULL;
}

// `time THREADS SEED`: touches one page of each chunk, each chunk by one of the threads. Answers with the
// time of the whole and then of each touch, in nanoseconds.
static void do_time(size_t threads, uint32_t seed) {
  size_t chunks = memory_bytes / CHUNK;
  uint32_t* order = some_pages(0, chunks, seed);
  uint32_t* took_ns = calloc(chunks, sizeof *took_ns);
  pthread_t running[THREADS_MAX];
  struct timing timing[THREADS_MAX];
  uint64_t began = now_ns();
  for (size_t i = 0; i < threads; i++) {
    size_t from = chunks * i / threads, to = chunks * (i + 1) / threads;
    timing[i] = (struct timing){order + from, to - from, took_ns + from};
    pthread_create(&running[i], NULL, time_chunks, &timing[i]);
  }
  for (size_t i = 0; i < threads; i++) pthread_join(running[i], NULL);
  printf("ok %llu", (unsigned long long)(now_ns() - began));
  for (size_t i = 0; i < chunks; i++) printf(" %u", took_ns[i]);
  putchar('\n');
  fflush(stdout);
  free(order);
  free(took_ns);
}

// `fork GENERATIONS`: a raw fork, whose child checks its share of the pages and forks in its turn. Only then
// do the parents check: the children's faults come first.
static void do_fork(size_t generations) {
  size_t pages = memory_bytes / PAGE, share = pages / (generations + 1);
  size_t generation = 0;
  pid_t child = -1;
  while (generation < generations) {
    child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child < 0) return answer("fail clone: %m");
    if (child > 0) break;
    generation++;
    child = -1;
  }
  int wrong = 0, status = 0;
  if (child > 0 && (waitpid(child, &status, 0) != child || status != 0)) wrong++;
  for (size_t i = 0; i < share; i++)
    if (!page_is_right(generation * share + i)) wrong++;
  if (generation > 0) _exit(wrong ? 1 : 0);
  answer(wrong == 0 ? "ok" : "fail %d wrong, a child ended with %#x", wrong, status);
}

// `forks COUNT`: children that touch one page and stay until they are killed. Answers with their pids.
static void do_forks(size_t count) {
  printf("ok");
  fflush(stdout);
  for (size_t i = 0; i < count; i++) {
    pid_t child = (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      (void)page_is_right(i);
      for (;;) pause();
    }
    printf(" %d", child);
  }
  answer("");
}

static void do_reap(void) {
  while (waitpid(-1, NULL, 0) > 0) {
  }
  answer("ok");
}

// `drop FIRST COUNT`: MADV_DONTNEED of these pages, which were written before.
static void do_drop(size_t first, size_t count) {
  for (size_t i = first; i < first + count; i++) memory[i * PAGE] = 0xff;
  answer(madvise(memory + first * PAGE, count * PAGE, MADV_DONTNEED) == 0 ? "ok" : "fail madvise: %m");
}

static void do_zero(size_t first, size_t count) {
  for (size_t i = first; i < first + count; i++)
    if (!page_is_zero(i)) return answer("fail page %zu is not zero", i);
  answer("ok");
}

// `write FIRST COUNT`: stores into pages that nobody has read.
static void do_write(size_t first, size_t count) {
  for (size_t i = first; i < first + count; i++) {
    volatile uint32_t* words = (uint32_t*)(memory + i * PAGE);
    words[7] = 0xabcdef01;
    for (size_t word = 0; word < PAGE / 4; word++)
      if (words[word] != (word == 7 ? 0xabcdef01 : word_of(i, word))) return answer("fail page %zu", i);
  }
  answer("ok");
}

// `move FIRST COUNT`: mremap(2) of these pages to elsewhere, where they must show the same; then unmaps them.
static void do_move(size_t first, size_t count) {
  uint8_t* there = mmap(NULL, count * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint8_t* from = memory + first * PAGE;
  if (mremap(from, count * PAGE, count * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there) == MAP_FAILED)
    return answer("fail mremap: %m");
  uint8_t* before = memory;
  memory = there - first * PAGE;
  size_t wrong = 0;
  for (size_t i = first; i < first + count; i++) wrong += !page_is_right(i);
  memory = before;
  if (munmap(there, count * PAGE) != 0) return answer("fail munmap: %m");
  answer(wrong == 0 ? "ok" : "fail %zu pages are wrong", wrong);
}

// `peek PID ADDRESS`: reads four bytes of another process.
static void do_peek(pid_t pid, uintptr_t address) {
  uint32_t word;
  struct iovec here = {&word, sizeof word}, there = {(void*)address, sizeof word};
  answer(process_vm_readv(pid, &here, 1, &there, 1, 0) == sizeof word ? "ok" : "fail process_vm_readv: %m");
}

int main(void) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  for (int fd = 0; fd <= SOCKET; fd++) fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
  char line[1024];
  while (fgets(line, sizeof line, stdin)) {
    char text[1000] = "";
    unsigned long long n[4] = {0};
    line[strcspn(line, "\n")] = '\0';
    if (sscanf(line, "map %999s %llx", text, &n[0]) == 2) {
      do_map(text, n[0]);
    } else if (sscanf(line, "hand %999[^\n]", text) == 1) {
      do_hand(text);
    } else if (sscanf(line, "check %llu %llu %llu %llu", &n[0], &n[1], &n[2], &n[3]) == 4) {
      do_check(n[0], n[1], n[2], (uint32_t)n[3]);
    } else if (sscanf(line, "time %llu %llu", &n[0], &n[1]) == 2) {
      do_time(n[0], (uint32_t)n[1]);
    } else if (sscanf(line, "forks %llu", &n[0]) == 1) {
      do_forks(n[0]);
    } else if (sscanf(line, "fork %llu", &n[0]) == 1) {
      do_fork(n[0]);
    } else if (strcmp(line, "reap") == 0) {
      do_reap();
    } else if (sscanf(line, "drop %llu %llu", &n[0], &n[1]) == 2) {
      do_drop(n[0], n[1]);
    } else if (sscanf(line, "zero %llu %llu", &n[0], &n[1]) == 2) {
      do_zero(n[0], n[1]);
    } else if (sscanf(line, "write %llu %llu", &n[0], &n[1]) == 2) {
      do_write(n[0], n[1]);
    } else if (sscanf(line, "move %llu %llu", &n[0], &n[1]) == 2) {
      do_move(n[0], n[1]);
    } else if (sscanf(line, "peek %llu %llu", &n[0], &n[1]) == 2) {
      do_peek((pid_t)n[0], n[1]);
    } else if (strcmp(line, "where") == 0) {
      answer("ok %llu", (unsigned long long)(uintptr_t)memory);
    } else {
      answer("fail what is '%s'?", line);
    }
  }
}
