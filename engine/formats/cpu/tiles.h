// The packed layouts of the CPU kernels. Output rows are vector lanes: a tile is 32 output rows
// over all of k, contiguous, so that a thread reads one stream; in it a step of a few k holds two
// strips of 16 rows of 64 bytes each. Rows past n are zeros. One layout serves every instruction
// set and, where a format has two activation modes, both of them.
//
//   dense   step of 2 k: bf16 [16 rows][2 k], f16 [2 k][16 rows]
//   w8a16   64 bytes of header, then tiles: [32 f32 scales] and steps of 4 k, whose strip is four
//           lanes of 16 bytes, one for 4 rows: [4 rows][k0 k1][4 rows][k2 k3]; without AVX-512
//           no header, and steps of [16 rows][4 k]
//   w8a8    tiles: [32 f32 scales], steps of 4 k: [16 rows][4 k], stored as value + 128
//   w4a16   tiles of groups: [32 scales], steps of 8 k: [16 rows] words of 8 nibbles; nibble i is
//           k 2i and nibble i + 4 is k 2i + 1, stored as value + 8
//   mxfp4   tiles of two groups of 32: [32 e8m0][32 e8m0], steps of 8 k as in w4a16, E2M1 codes
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/format.h"

namespace stepladder::tiles {

inline constexpr int kRows = 32;   // output rows of a tile
inline constexpr int kStrip = 16;  // output rows of one 512-bit vector of 32-bit lanes

inline constexpr int kHeader = 64;          // w8a16: byte 0 says whether any weight is -128
inline constexpr int kChannelScales = 128;  // 32 f32 scales

/// Longest k the kernels take: int8 sums of 65,536 products of 255 x 127 still fit 32 bits.
inline constexpr int kMaxK = 65536;

SL_INLINE constexpr int count(int n) { return (n + kRows - 1) / kRows; }
SL_INLINE constexpr size_t dense_tile(int k) { return size_t(k) * 64; }
SL_INLINE constexpr size_t w8_tile(int k) { return kChannelScales + size_t(k) * 32; }
SL_INLINE constexpr size_t w4_scales(DType scale) { return scale == DType::f32 ? 128 : 64; }
SL_INLINE constexpr size_t w4_tile(int k, int group, DType scale) {
  return size_t(k / group) * (w4_scales(scale) + size_t(group) * 16);
}
SL_INLINE constexpr size_t mxfp4_tile(int k) {
  return size_t(k / 32 + 1) / 2 * 64 + size_t(k) * 16;
}

/// The place of (row r of 32, k i of 8) in a step of nibbles: byte, and whether the high half.
struct Nibble {
  int byte;
  bool high;
};
SL_INLINE constexpr Nibble nibble(int r, int i) {
  const int at = i / 2 + (i % 2) * 4;
  return {r * 4 + at / 2, at % 2 == 1};
}

}  // namespace stepladder::tiles

#define SL_STRING_OF(x) #x
#define SL_STRING(x) SL_STRING_OF(x)
/// The name of the instruction set a file is compiled for.
#define SL_ISA_NAME SL_STRING(SL_ISA)
