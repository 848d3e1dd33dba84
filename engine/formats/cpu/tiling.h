// Rearranges rows of codes into tiles, for packers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "formats/cpu/tiles.h"
#include "formats/weight_rows.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace stepladder::tiles {

/// Copies `bytes` that nobody reads soon. Whole 64s go past the caches, which would first read what
/// they replace (1.7 against 6 GB/s); `to` is then 16-byte aligned. end_stream() makes them
/// visible to other threads.
inline void stream(std::byte* to, const void* from, size_t bytes) {
#if defined(__SSE2__)
  if (bytes % 64 == 0) {
    auto* out = reinterpret_cast<__m128i*>(to);
    const auto* in = static_cast<const __m128i*>(from);
    for (size_t i = 0; i < bytes / 16; ++i) _mm_stream_si128(out + i, _mm_loadu_si128(in + i));
    return;
  }
#endif
  std::memcpy(to, from, bytes);
}
inline void end_stream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

constexpr int kBlock = 16;  // steps that are turned at once: a cache line of each row
using Block = uint32_t[kBlock][kRows];

/// block[s][r] = word s of row r, of `rows` rows that begin `stride` words apart.
inline void turn(Block& block, const std::byte* words, size_t stride, int rows, int steps) {
  const auto at = [&](int r, int s) { return words + (r * stride + s) * 4; };
  if (steps == kBlock && rows == kRows) {
    for (int r = 0; r < kRows; r += 2)
      for (int s = 0; s < kBlock; s += 2) {  // two by two
        uint64_t a, b;
        std::memcpy(&a, at(r, s), 8), std::memcpy(&b, at(r + 1, s), 8);
        const uint64_t low = (a & 0xffffffffu) | b << 32, high = a >> 32 | (b >> 32 << 32);
        std::memcpy(&block[s][r], &low, 8), std::memcpy(&block[s + 1][r], &high, 8);
      }
    return;
  }
  for (int r = 0; r < rows; ++r)
    for (int s = 0; s < steps; ++s) std::memcpy(&block[s][r], at(r, s), 4);
}

/// Calls put(tile, step, lane, words, count) for the codes of every 32 bits along k (a step) in
/// every tile the rows touch: words [count] of the rows from `lane` on. Rows must be whole words.
template <class Put>
void each_step(const WeightRows& w, Put&& put) {
  const size_t steps = size_t(w.k) * bits(w.desc.code) / 32;
  alignas(64) Block block = {};
  for (int row = 0; row < w.count;) {
    const int tile = (w.first + row) / kRows, lane = (w.first + row) % kRows;
    const int count = std::min(kRows - lane, w.count - row);
    for (size_t from = 0; from < steps; from += kBlock) {
      const int some = static_cast<int>(std::min<size_t>(kBlock, steps - from));
      if (w.words_across)
        for (int s = 0; s < some; ++s)
          std::memcpy(block[s], w.codes + ((from + s) * w.count + row) * 4, size_t(count) * 4);
      else
        turn(block, w.codes + (row * steps + from) * 4, steps, count, some);
      for (int s = 0; s < some; ++s) put(tile, static_cast<int>(from) + s, lane, block[s], count);
    }
    row += count;
  }
  end_stream();
}

/// Puts words at `out`, each changed by `change`.
template <class Change>
void put_words(std::byte* out, const uint32_t* words, int count, Change&& change) {
  alignas(64) uint32_t changed[kRows];
  for (int i = 0; i < kRows; ++i) changed[i] = change(words[i]);  // of all, so that it vectorizes
  stream(out, changed, size_t(count) * 4);
}

/// Calls put(tile, group, lane, scales, count) with the scales of every group in every tile the
/// rows touch.
template <class Put>
void each_scale(const WeightRows& w, Put&& put) {
  const size_t groups = w.desc.groups(w.k);
  float scales[kRows];
  for (int row = 0; row < w.count;) {
    const int tile = (w.first + row) / kRows, lane = (w.first + row) % kRows;
    const int count = std::min(kRows - lane, w.count - row);
    for (size_t g = 0; g < groups; ++g) {
      for (int r = 0; r < count; ++r) scales[r] = w.scales[(row + r) * groups + g];
      put(tile, g, lane, scales, count);
    }
    row += count;
  }
}

/// Nibbles 0..7 of a word in the order that nibble() draws: 0 2 4 6 1 3 5 7.
inline uint32_t even_then_odd(uint32_t x) {
  uint32_t t = (x ^ (x >> 4)) & 0x00f000f0u;
  x ^= t ^ (t << 4);
  t = (x ^ (x >> 8)) & 0x0000ff00u;
  return x ^ t ^ (t << 8);
}

}  // namespace stepladder::tiles
