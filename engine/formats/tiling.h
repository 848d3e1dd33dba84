// Rearranges rows of codes into tiles, for packers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "formats/tiles.h"
#include "formats/weight_rows.h"

namespace stepladder::tiles {

/// Calls put(tile, step, lane, words, count) for the codes of every 32 bits along k (a step) in
/// every tile the rows touch: words [count] of the rows from `lane` on. Rows must be whole words.
template <class Put>
void each_step(const WeightRows& w, Put&& put) {
  constexpr int kBlock = 16;  // steps: a cache line of each row
  const size_t steps = size_t(w.k) * bits(w.desc.code) / 32;
  uint32_t block[kBlock][kRows] = {};
  for (int row = 0; row < w.count;) {
    const int tile = (w.first + row) / kRows, lane = (w.first + row) % kRows;
    const int count = std::min(kRows - lane, w.count - row);
    for (size_t from = 0; from < steps; from += kBlock) {
      const int some = static_cast<int>(std::min<size_t>(kBlock, steps - from));
      if (w.words_across) {
        for (int s = 0; s < some; ++s)
          std::memcpy(block[s], w.codes + ((from + s) * w.count + row) * 4, size_t(count) * 4);
      } else {
        for (int r = 0; r < count; ++r) {
          uint32_t line[kBlock];
          std::memcpy(line, w.codes + ((row + r) * steps + from) * 4, size_t(some) * 4);
          for (int s = 0; s < some; ++s) block[s][r] = line[s];
        }
      }
      for (int s = 0; s < some; ++s)
        put(tile, static_cast<int>(from) + s, lane, block[s], count);
    }
    row += count;
  }
}

/// Puts words at `out`, each changed by `change`.
template <class Change>
void put_words(std::byte* out, const uint32_t* words, int count, Change&& change) {
  uint32_t changed[kRows];
  for (int i = 0; i < kRows; ++i) changed[i] = change(words[i]);  // of all, so that it vectorizes
  std::memcpy(out, changed, size_t(count) * 4);
}

/// Nibbles 0..7 of a word in the order that nibble() draws: 0 2 4 6 1 3 5 7.
inline uint32_t even_then_odd(uint32_t x) {
  uint32_t t = (x ^ (x >> 4)) & 0x00f000f0u;
  x ^= t ^ (t << 4);
  t = (x ^ (x >> 8)) & 0x0000ff00u;
  return x ^ t ^ (t << 8);
}

}  // namespace stepladder::tiles
