// Multiples.
#pragma once

namespace stepladder {

/// The least multiple of `to` that is not below x >= 0.
template <class T>
constexpr T round_up(T x, T to) {
  return (x + to - 1) / to * to;
}

}  // namespace stepladder
