// A process that maps a memory file privately and changes it on request, as a VM does.
//
// usage: private-subject FD PARTS: PARTS mappings of equal size, in memory in the opposite order of the file.
// Reads commands, a line each, and answers "ok" or an error:
//
//   write PAGE SEED
//   fill FIRST COUNT SEED
//   zero PAGE
//   read PAGE
//   drop PAGE       back to the file
//   split PAGE      becomes a mapping of its own
//   pageout PAGE    to swap, where there is any
//   hide PAGE       no access
//   zeropage PAGE   userfaultfd: the zero page, mapped
//   protect PAGE    userfaultfd: write-protected
//   again           the first page, mapped once more
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096

static char** parts;
static long pages_per_part;

static char* page_at(long page) {
  return parts[page / pages_per_part] + page % pages_per_part * PAGE;
}

// test/native/layers.ts makes the same bytes.
static void fill(char* page, uint32_t seed) {
  uint32_t* words = (uint32_t*)page;
  for (uint32_t i = 0; i < PAGE / 4; i++) words[i] = seed + (i % 64) * (seed | 1);
}

static int opened_uffd(void) {
  static int uffd = -1;
  if (uffd >= 0) return uffd;
  uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  struct uffdio_api api = {.api = UFFD_API};
  return uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0 ? -1 : uffd;
}

static int zero_page(char* page) {
  int uffd = opened_uffd();
  struct uffdio_register range = {.range = {(uintptr_t)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
  if (ioctl(uffd, UFFDIO_REGISTER, &range) != 0) return -1;
  struct uffdio_zeropage zero = {.range = {(uintptr_t)page, PAGE}};
  if (ioctl(uffd, UFFDIO_ZEROPAGE, &zero) != 0) return -1;
  return ioctl(uffd, UFFDIO_UNREGISTER, &range.range);
}

static int protect(char* page) {
  int uffd = opened_uffd();
  struct uffdio_register range = {.range = {(uintptr_t)page, PAGE}, .mode = UFFDIO_REGISTER_MODE_WP};
  if (ioctl(uffd, UFFDIO_REGISTER, &range) != 0) return -1;
  struct uffdio_writeprotect wp = {.range = {(uintptr_t)page, PAGE}, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
  return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

int main(int argc, char** argv) {
  int fd = atoi(argv[1]);
  long count = atol(argv[2]);
  struct stat st;
  if (argc != 3 || fstat(fd, &st) != 0) return 2;
  long part_bytes = st.st_size / count;
  pages_per_part = part_bytes / PAGE;
  parts = calloc((size_t)count, sizeof *parts);
  // A page between two parts: the kernel would otherwise be free to make them one mapping.
  char* room = mmap(NULL, (size_t)(st.st_size + count * PAGE), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (long i = 0; i < count; i++) {
    char* at = room + (count - 1 - i) * (part_bytes + PAGE);
    parts[i] =
        mmap(at, (size_t)part_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, i * part_bytes);
    if (parts[i] == MAP_FAILED) return 3;
  }

  char line[256], name[32];
  while (fgets(line, sizeof line, stdin)) {
    long page = 0, second = 0, third = 0;
    int failed = 0;
    if (sscanf(line, "%31s %ld %ld %ld", name, &page, &second, &third) < 1) return 4;
    if (!strcmp(name, "write")) {
      fill(page_at(page), (uint32_t)second);
    } else if (!strcmp(name, "fill")) {
      for (long i = 0; i < second; i++) fill(page_at(page + i), (uint32_t)(third + i));
    } else if (!strcmp(name, "zero")) {
      memset(page_at(page), 0, PAGE);
    } else if (!strcmp(name, "read")) {
      volatile char byte = *page_at(page);
      (void)byte;
    } else if (!strcmp(name, "drop")) {
      failed = madvise(page_at(page), PAGE, MADV_DONTNEED);
    } else if (!strcmp(name, "split")) {
      failed = madvise(page_at(page), PAGE, MADV_DONTFORK);
    } else if (!strcmp(name, "pageout")) {
      failed = madvise(page_at(page), PAGE, MADV_PAGEOUT);
    } else if (!strcmp(name, "hide")) {
      failed = mprotect(page_at(page), PAGE, PROT_NONE);
    } else if (!strcmp(name, "zeropage")) {
      failed = zero_page(page_at(page));
    } else if (!strcmp(name, "protect")) {
      failed = protect(page_at(page));
    } else if (!strcmp(name, "again")) {
      failed = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0) == MAP_FAILED;
    } else {
      return 5;
    }
    printf("%s\n", failed ? strerror(errno) : "ok");
    fflush(stdout);
  }
  return 0;
}
