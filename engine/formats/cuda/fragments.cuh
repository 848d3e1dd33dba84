// How the codes of each format become fragments: values of the activations' 16-bit type that stand
// for the codes exactly, so that scales are applied to sums.
#pragma once

#include "backends/cuda/device/tensor.cuh"
#include "core/format.h"
#include "formats/cuda/fragments.h"

namespace stepladder::cuda {

/// Of one half of a block, 16 outputs and 16 k, what a lane holds.
struct Fragment {
  uint32_t a[4];
};

/// x * by + plus in both halves of a word, rounded once; subnormals count.
template <bool kBf16>
__device__ inline uint32_t fused(uint32_t x, uint32_t by, uint32_t plus) {
  uint32_t d;
  if constexpr (kBf16)
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(by), "r"(plus));
  else
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(x), "r"(by), "r"(plus));
  return d;
}
template <bool kBf16>
__device__ inline uint32_t times(uint32_t x, uint32_t by) {
  return fused<kBf16>(x, by, 0x80008000u);
}

// A format's codes: kVectors of 16 bytes a lane are two blocks.

/// Weights of the activations' own type.
template <bool kBf16>
struct DenseCodes {
  static constexpr int kBits = 16, kVectors = 4;
  static constexpr float kOne = 1.f;
  __device__ static Fragment fragment(const uint4 (&v)[kVectors], int block, int half) {
    const uint4 x = v[2 * block + half];
    return {{x.x, x.y, x.z, x.w}};
  }
};

/// int8: by way of floats, whose conversion is exact.
template <bool kBf16>
struct ByteCodes {
  static constexpr int kBits = 8, kVectors = 2;
  static constexpr float kOne = 1.f;
  /// Bytes `at` and at + 1 of a word that was xor-ed with 0x80808080.
  __device__ static uint32_t pair(uint32_t word, int at) {
    constexpr float kBias = 8388608.f + 128.f;  // 2^23 holds a byte in its last bits
    const float low = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7650u + at)) - kBias;
    const float high = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7651u + at)) - kBias;
    return rounded_pair<kBf16>(low, high);
  }
  __device__ static Fragment fragment(const uint4 (&v)[kVectors], int block, int half) {
    const uint4 x = v[block];
    const uint32_t low = (half ? x.y : x.x) ^ 0x80808080u, high = (half ? x.w : x.z) ^ 0x80808080u;
    return {{pair(low, 0), pair(high, 0), pair(low, 2), pair(high, 2)}};
  }
};

/// What stands in the two halves of a word, as kValues.
enum class Nibbles { signed8, e2m1 };

/// 4 bits: value + 8, or E2M1. A nibble in the last bits of a half, or one place up, is
/// a subnormal number, which a multiplication makes kOne for each 1 of it; E2M1's exponent and
/// mantissa go to the last places of the exponent field, whose bias a power of two makes good.
template <bool kBf16, Nibbles kNibbles>
struct NibbleCodes {
  static constexpr int kBits = 4, kVectors = 1;
  /// What the fragment of a code of 1 is.
  static constexpr float kOne = kNibbles == Nibbles::e2m1 ? 1.f : kBf16 ? 0x1p-6f : 0x1p-9f;
  __device__ static uint32_t pair(uint32_t word, int j) {
    if constexpr (kNibbles == Nibbles::e2m1) {
      const uint32_t x = word >> (4 * j);
      constexpr int kExponent = kBf16 ? 6 : 9;  // bits from code to exponent field
      const uint32_t bits = (x & 0x00070007u) << kExponent | (x & 0x00080008u) << 12;
      return times<kBf16>(bits, kBf16 ? 0x7e807e80u : 0x74007400u);  // 2^126, 2^14
    } else {
      const uint32_t x = j < 2 ? word : word >> 8;
      const uint32_t nibbles = x & (j % 2 ? 0x00f000f0u : 0x000f000fu);
      // 2^127 or 2^123 times a multiple of 2^-133; 2^15 or 2^11 times one of 2^-24.
      const uint32_t by =
          kBf16 ? (j % 2 ? 0x7d007d00u : 0x7f007f00u) : (j % 2 ? 0x68006800u : 0x78007800u);
      constexpr uint32_t kZero = kBf16 ? 0xbe00be00u : 0xa400a400u;
      return fused<kBf16>(nibbles, by, kZero);  // less 8 kOne
    }
  }
  __device__ static Fragment fragment(const uint4 (&v)[kVectors], int block, int half) {
    const uint32_t low = block ? v[0].z : v[0].x, high = block ? v[0].w : v[0].y;
    return {{pair(low, 2 * half), pair(high, 2 * half), pair(low, 2 * half + 1),
             pair(high, 2 * half + 1)}};
  }
};

}  // namespace stepladder::cuda
