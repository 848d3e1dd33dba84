// What casts of f32 to codes share; loops over these vectorize on every machine.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

namespace stepladder {

/// The largest magnitude of n values; infinite or NaN when any of them is.
inline float largest_magnitude(const float* values, int n) {
  uint32_t most = 0;  // without the sign, floats are ordered as their bits are
  for (int i = 0; i < n; ++i)
    most = std::max(most, std::bit_cast<uint32_t>(values[i]) & 0x7fffffffu);
  return std::bit_cast<float>(most);
}

/// The index of the first of n values that is not finite; n when all are.
inline int first_not_finite(const float* values, int n) {
  int i = 0;
  while (i < n && std::isfinite(values[i])) ++i;
  return i;
}

/// x rounded to an integer, ties to even, for |x| < 2^22: adding 1.5 x 2^23 leaves no bit below 1.
inline float to_integer(float x) { return x + 0x1.8p23f - 0x1.8p23f; }

}  // namespace stepladder
