// State that no copy can have, and making the next forks cheap.
#include <string.h>
#include <sys/mman.h>

#include "hotfork.h"
#include "sys.h"

bool memory_copyable(struct refusal* why) {
  // timer_create(2) timers are not inherited (proc(5)); the file needs CONFIG_CHECKPOINT_RESTORE, which
  // distributions set.
  char byte;
  const int fd = open_ro("/proc/self/timers", 0);
  if (fd < 0) return true;
  const long bytes = sys(SYS_read, fd, &byte, 1);
  sys(SYS_close, fd);
  if (bytes <= 0) return true;
  *why = (struct refusal){HF_UNSUPPORTED, 0, "the process has POSIX timers, which no child would have"};
  return false;
}

// Trimming. A fork copies every present page-table entry of a mapping that has private pages
// (copy_page_range, about 45 ns each), also the entries of clean file pages, which a child would find again
// through the page cache. Guest memory is one such mapping: after a boot or a long warm-up most of what it
// maps is never touched again. Dropping the entries of clean pages loses nothing: the next access maps them
// again, 16 at a time. So: trim, release, warm once more, freeze.

enum { PAGE_BYTES = 4096, TRIM_FROM_BYTES = 1 << 20, PAGEMAP_BATCH = 512, HUGE_BYTES = 2 << 20 };
// A huge page costs the template up to 2 MiB once, and saves each fork this many entries at least.
enum { COLLAPSE_FROM_PAGES = 64 };
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static const uint64_t PAGEMAP_FILE_OR_SHARED = 1ULL << 61;
static const uint64_t PAGEMAP_SWAPPED = 1ULL << 62;
static const uint64_t PAGEMAP_PRESENT = 1ULL << 63;

static void drop(uintptr_t from, uintptr_t to) {
  if (to > from) sys(SYS_madvise, from, to - from, MADV_DONTNEED);
}

/** Drops the clean pages of one private file mapping. A page of the process's own is anonymous: present or
 * swapped, not of the file. */
static void trim_mapping(int pagemap, uintptr_t start, uintptr_t end) {
  static uint64_t entries[PAGEMAP_BATCH];
  uintptr_t clean_from = start;
  bool any_clean = false;
  for (uintptr_t at = start; at < end;) {
    const size_t wanted = (end - at) / PAGE_BYTES < PAGEMAP_BATCH ? (end - at) / PAGE_BYTES : PAGEMAP_BATCH;
    const long bytes =
        sys(SYS_pread64, pagemap, entries, wanted * sizeof *entries, at / PAGE_BYTES * sizeof *entries);
    if (bytes <= 0) return;  // nothing dropped beyond what is known to be clean
    for (size_t i = 0; i < (size_t)bytes / sizeof *entries; i++, at += PAGE_BYTES) {
      const bool mapped = (entries[i] & PAGEMAP_PRESENT) != 0;
      const bool own =
          (mapped && (entries[i] & PAGEMAP_FILE_OR_SHARED) == 0) || (entries[i] & PAGEMAP_SWAPPED) != 0;
      any_clean |= mapped && !own;
      if (!own) continue;
      if (any_clean) drop(clean_from, at);
      clean_from = at + PAGE_BYTES;
      any_clean = false;
    }
  }
  if (any_clean) drop(clean_from, end);
}

/**
 * Makes huge pages of the program's own memory: one entry to copy instead of 512, and one page descriptor to
 * touch. A child that writes to one gets it split first (do_huge_pmd_wp_page), a few microseconds, and copies
 * 4 KiB as before. Fails with EINVAL before Linux 6.1 and where fewer than 2 MiB hang together: then all
 * stays as it is.
 */
static void collapse(uintptr_t start, uintptr_t end) {
  start = (start + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1);
  end &= ~(uintptr_t)(HUGE_BYTES - 1);
  for (; start < end; start += HUGE_BYTES) {
    unsigned char resident[HUGE_BYTES / PAGE_BYTES];
    // Never where nothing is: that would spend 2 MiB on a hole in a stack or an arena.
    if (sys(SYS_mincore, start, HUGE_BYTES, resident) != 0) continue;
    unsigned pages = 0;
    for (size_t i = 0; i < sizeof resident; i++) pages += resident[i] & 1;
    if (pages >= COLLAPSE_FROM_PAGES) sys(SYS_madvise, start, HUGE_BYTES, MADV_COLLAPSE);
  }
}

/** Reads one hexadecimal number, leaves `at` behind it. */
static uintptr_t read_hex(const char** at) {
  uintptr_t value = 0;
  for (;; (*at)++) {
    const char c = **at;
    if (c >= '0' && c <= '9')
      value = value * 16 + (uintptr_t)(c - '0');
    else if (c >= 'a' && c <= 'f')
      value = value * 16 + (uintptr_t)(c - 'a' + 10);
    else
      return value;
  }
}

/** One line of /proc/self/maps: `start-end rw-p offset device inode  path`. */
static void trim_line(int pagemap, const char* line) {
  const uintptr_t start = read_hex(&line);
  line++;
  const uintptr_t end = read_hex(&line);
  line++;
  const bool private_writable = line[0] == 'r' && line[1] == 'w' && line[3] == 'p';
  line += 5;
  read_hex(&line);  // offset
  line++;
  read_hex(&line);  // device, major
  line++;
  read_hex(&line);                      // device, minor
  const bool of_file = line[1] != '0';  // inode
  if (private_writable && !of_file) collapse(start, end);
  if (private_writable && of_file && end - start >= TRIM_FROM_BYTES) trim_mapping(pagemap, start, end);
}

void memory_trim(void) {
  static char buffer[8192];
  // A trim that fails costs time in later forks and nothing else.
  const int maps = open_ro("/proc/self/maps", 0);
  // In a jail it cannot be opened any more.
  const bool kept = control.pagemap_fd >= 0;
  const int pagemap = kept ? control.pagemap_fd : open_ro("/proc/self/pagemap", 0);
  size_t held = 0;
  long bytes;
  while (maps >= 0 && pagemap >= 0 &&
         (bytes = sys(SYS_read, maps, buffer + held, sizeof buffer - 1 - held)) > 0) {
    held += (size_t)bytes;
    buffer[held] = '\0';
    char* line = buffer;
    for (char* end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
      *end = '\0';
      trim_line(pagemap, line);
    }
    held = strlen(line);
    memmove(buffer, line, held);
  }
  if (maps >= 0) sys(SYS_close, maps);
  if (pagemap >= 0 && !kept) sys(SYS_close, pagemap);
}
