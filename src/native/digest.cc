#include "digest.h"

#include <blake3.h>

#include <new>

namespace forkd {

namespace {

int HexValue(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  return -1;
}

}  // namespace

Digest DigestOf(const uint8_t* data, size_t bytes) {
  DigestStream stream;
  stream.Add(data, bytes);
  return stream.Finish();
}

DigestStream::DigestStream() {
  static_assert(sizeof(blake3_hasher) <= sizeof state_ && alignof(blake3_hasher) <= 8);
  blake3_hasher_init(new (state_) blake3_hasher);
}

void DigestStream::Add(const void* data, size_t bytes) {
  blake3_hasher_update(reinterpret_cast<blake3_hasher*>(state_), data, bytes);
}

Digest DigestStream::Finish() const {
  Digest digest;
  blake3_hasher_finalize(reinterpret_cast<const blake3_hasher*>(state_), digest.data(), digest.size());
  return digest;
}

std::string ToHex(const Digest& digest) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (uint8_t byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

bool FromHex(std::string_view text, Digest* digest) {
  if (text.size() != 2 * digest->size()) return false;
  for (size_t i = 0; i < digest->size(); i++) {
    int high = HexValue(text[2 * i]), low = HexValue(text[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    (*digest)[i] = static_cast<uint8_t>(high << 4 | low);
  }
  return true;
}

}  // namespace forkd
