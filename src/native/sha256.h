#pragma once

#include <cstddef>
#include <cstdint>

#include "digest.h"

namespace forkd {

// SHA-256 (FIPS 180-4) of bytes that come in parts, by the processor's own instructions where it has them.
// What goes through memory anyway is hashed there; everything else is hashed by Node.
class Sha256 {
 public:
  // `is_plain`: without these instructions.
  explicit Sha256(bool is_plain = false);

  void Add(const uint8_t* data, size_t bytes);
  Digest Finish();

 private:
  static constexpr size_t kBlockBytes = 64;

  void (*blocks_)(uint32_t* state, const uint8_t* data, size_t blocks);
  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t rest_[kBlockBytes];  // of a block that is not whole
  size_t rest_bytes_ = 0;
  uint64_t bytes_ = 0;
};

}  // namespace forkd
