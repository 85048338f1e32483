#include "sha256.h"

#include <cpuid.h>
#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstring>

namespace forkd {

namespace {

constexpr size_t kBlock = 64;

alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t Big(const uint8_t* from) {
  uint32_t word;
  memcpy(&word, from, sizeof word);
  return __builtin_bswap32(word);
}

void PlainBlocks(uint32_t* state, const uint8_t* data, size_t blocks) {
  using std::rotr;
  for (; blocks > 0; blocks--, data += kBlock) {
    uint32_t w[64];
    for (int i = 0; i < 16; i++) w[i] = Big(data + 4 * i);
    for (int i = 16; i < 64; i++) {
      uint32_t s0 = rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3;
      uint32_t s1 = rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    uint32_t s[8];
    memcpy(s, state, sizeof s);
    auto& [a, b, c, d, e, f, g, h] = s;
    for (int i = 0; i < 64; i++) {
      uint32_t t1 = h + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      uint32_t t2 = (rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    for (int i = 0; i < 8; i++) state[i] += s[i];
  }
}

// The instructions want the state as two vectors, ABEF and CDGH, and do two rounds each.
__attribute__((target("sha,sse4.1"))) void FastBlocks(uint32_t* state, const uint8_t* data, size_t blocks) {
  const __m128i big = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  auto* states = reinterpret_cast<__m128i*>(state);
  __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(states), 0xb1);
  __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(states + 1), 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
  __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);

  for (; blocks > 0; blocks--, data += kBlock) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i w[4];
    for (int i = 0; i < 4; i++) {
      w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(data) + i), big);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) {
      __m128i& now = w[i % 4];
      if (i >= 4) {
        // w[i - 4] is still in `now`.
        const __m128i &before3 = w[(i + 1) % 4], &before2 = w[(i + 2) % 4], &before1 = w[(i + 3) % 4];
        __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(now, before3), _mm_alignr_epi8(before1, before2, 4));
        now = _mm_sha256msg2_epu32(sum, before1);
      }
      __m128i with = _mm_add_epi32(now, _mm_load_si128(reinterpret_cast<const __m128i*>(kRound) + i));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, with);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(with, 0x0e));
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }

  __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
  __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(states, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128(states + 1, _mm_alignr_epi8(dchg, feba, 8));
}

bool HasInstructions() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSE4_1)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}

}  // namespace

Sha256::Sha256(bool is_plain) {
  static const bool kHas = HasInstructions();
  blocks_ = kHas && !is_plain ? FastBlocks : PlainBlocks;
}

void Sha256::Add(const uint8_t* data, size_t bytes) {
  bytes_ += bytes;
  if (rest_bytes_ > 0) {
    size_t taken = std::min(bytes, kBlockBytes - rest_bytes_);
    memcpy(rest_ + rest_bytes_, data, taken);
    rest_bytes_ += taken;
    data += taken;
    bytes -= taken;
    if (rest_bytes_ < kBlockBytes) return;
    blocks_(state_, rest_, 1);
  }
  blocks_(state_, data, bytes / kBlockBytes);
  rest_bytes_ = bytes % kBlockBytes;
  memcpy(rest_, data + bytes - rest_bytes_, rest_bytes_);
}

Digest Sha256::Finish() {
  uint64_t bits = __builtin_bswap64(bytes_ * 8);
  uint8_t end[2 * kBlockBytes] = {0x80};
  size_t zeros = (kBlockBytes * 2 - 1 - sizeof bits - rest_bytes_) % kBlockBytes;
  memcpy(end + 1 + zeros, &bits, sizeof bits);
  Add(end, 1 + zeros + sizeof bits);

  Digest digest;
  for (int i = 0; i < 8; i++) {
    uint32_t word = __builtin_bswap32(state_[i]);
    memcpy(digest.data() + 4 * i, &word, sizeof word);
  }
  return digest;
}

}  // namespace forkd
