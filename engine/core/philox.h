// Philox4x32-10: the counter-based generator behind the one choice rule.
// Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace stepladder {

struct Philox4 {
  uint32_t x[4];
};

/// Four random words, a pure function of counter and key.
SL_INLINE Philox4 philox(Philox4 counter, uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = counter.x[0], c1 = counter.x[1], c2 = counter.x[2], c3 = counter.x[3];
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1), c3 = static_cast<uint32_t>(p0), c0 = n0, c2 = n2;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// The random word of (seed, position, token): counter {token/4, position, 0, 0}, lane token%4.
SL_INLINE uint32_t noise_word(uint64_t seed, int32_t position, int32_t token) {
  const Philox4 r =
      philox({{static_cast<uint32_t>(token) >> 2, static_cast<uint32_t>(position), 0, 0}}, seed);
  return r.x[token & 3];
}

}  // namespace stepladder
