#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// BLAKE3 with 256 bits: the hash of frames and layers. The code is Debian's (vendor/blake3); it is named here
// and nowhere else.
namespace forkd {

using Digest = std::array<uint8_t, 32>;

Digest DigestOf(const uint8_t* data, size_t bytes);

// The digest of bytes that come in parts.
class DigestStream {
 public:
  DigestStream();
  void Add(const void* data, size_t bytes);
  Digest Finish() const;

 private:
  alignas(8) uint8_t state_[1920];
};

std::string ToHex(const Digest& digest);
// False when `text` is not 64 digits from 0-9 and a-f.
bool FromHex(std::string_view text, Digest* digest);

}  // namespace forkd
