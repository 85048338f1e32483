// What is here of a snapshot that is still being fetched, and what is asked for: two memories that the engine
// shares with every VMM of the snapshot. An item is a chunk of the memory image or, from `first_block` on, a
// block of the root disk. VMMs map the states read-only: none can claim for another that something is here.
#ifndef FORKD_HOTFORK_ARRIVALS_H_
#define FORKD_HOTFORK_ARRIVALS_H_

#include <stdint.h>

enum { ARRIVAL_BLOCK_BYTES = 65536, ARRIVAL_VICTIMS_MAX = 62 };

enum arrival_state {
  ARRIVAL_AWAY = 0,
  ARRIVAL_HERE = 1,
  // It will not come, and whoever waits for it must not wait any longer.
  ARRIVAL_LOST = 2,
};

// Each state is a futex word: who waits for an item waits there.
struct arrival_states {
  uint32_t items;
  uint32_t first_block;
  // Not 0: all of it is here, for good.
  uint32_t whole;
  uint32_t reserved;
  // The root disk, known by its inode.
  uint64_t disk_device;
  uint64_t disk_inode;
  uint32_t state[];
};

// Anybody may write here; nonsense only makes the engine fetch sooner what it fetches anyway.
struct arrival_asks {
  // Counts what was asked; a futex word.
  uint32_t bell;
  // Processes that ended themselves because a block is lost, a ring.
  uint32_t victims;
  // Who each is, as it can tell itself: its pid in its own pid namespace, and above that the inode of the
  // namespace's line (warden/warden.c), or 0 when it is in the engine's own.
  uint64_t victim[ARRIVAL_VICTIMS_MAX];
  // Whether somebody waits for the item: enum arrival_ask.
  uint32_t asked[];
};

enum arrival_ask {
  ARRIVAL_UNASKED = 0,
  ARRIVAL_ASKED = 1,
  // The engine has heard it.
  ARRIVAL_HEARD = 2,
};

#endif  // FORKD_HOTFORK_ARRIVALS_H_
