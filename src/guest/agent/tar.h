// One block of a tar archive, POSIX.1-1988 (ustar).
#pragma once

#define TAR_BLOCK 512
// What fits into octal digits.
#define TAR_SIZE_MAX 077777777777ull
#define TAR_ID_MAX 07777777u

struct tar_header {
  char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], checksum[8];
  char type;
  char target[100], magic[6], version[2], user[32], group[32], major[8], minor[8], prefix[155], rest[12];
};

_Static_assert(sizeof(struct tar_header) == TAR_BLOCK, "a header is one block");
