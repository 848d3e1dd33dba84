// One step of attention without intrinsics, for instruction sets that have no body of their own: 32
// keys against up to four query heads of one row. The compiler lowers vectors of eight floats to
// whatever registers there are. Elements are kept in chunks of 16, the eight even ones before the
// eight odd ones, because that is how one shift and one mask widen a 16-bit row.
#pragma once

#include "backends/cpu/kv_layout.h"
#include "backends/cpu/simd.h"
#ifdef __FMA__
#include <immintrin.h>
#endif

namespace stepladder::SL_ISA {
namespace {

constexpr int kHeads = 4;         // query heads a step serves together
constexpr int kMaxHeadDim = 256;  // elements of a head
constexpr int kChunk = 16;        // elements in an even and an odd vector

typedef float Eight __attribute__((vector_size(32)));
typedef uint32_t EightBits __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));

/// Elements a running sum takes.
SL_INLINE int padded_dim(int head_dim) { return (head_dim + kChunk - 1) / kChunk * kChunk; }

/// What a row's heads have seen so far: the largest score and the sum of weights in 16 parts by key
/// position. The weighted sum of values lies apart.
struct Running {
  float largest[kHeads];
  float weight[kHeads][kLanes];
};

/// acc += a * b: fused where the instruction set has it.
SL_INLINE void mac(Eight& acc, const Eight& a, float b) {
  const Eight all = {b, b, b, b, b, b, b, b};
#ifdef __FMA__
  acc = (Eight)_mm256_fmadd_ps((__m256)a, (__m256)all, (__m256)acc);
#else
  acc = acc + a * all;
#endif
}

/// 2^x of eight values, as exp2_plain.
SL_INLINE void exp2_eight(Eight& x) {
  constexpr float kRound = 12582912.f;
  x = x < -125.f ? Eight{} - 125.f : x;
  x = x > 127.f ? Eight{} + 127.f : x;
  const Eight shifted = x + kRound, f = x - (shifted - kRound);
  Eight p = Eight{} + kExp2[6];
#pragma GCC unroll 6
  for (int i = 5; i >= 0; --i) p = p * f + kExp2[i];
  const EightBits exponent = (EightBits)shifted - float_as_bits(kRound);
  x = (Eight)((EightBits)p + (exponent << 23));
}

/// Eight f16 in the low halves -> f32, as widen_f16 does.
SL_INLINE void widen_eight(const EightBits& x, Eight& to) {
  const EightBits rest = x & 0x7fffu, shifted = rest << 13;
  const EightBits finite = (EightBits)((Eight)shifted * 0x1p112f);
  const EightBits special = (EightBits)((EightInts)rest > 0x7bff);
  to = (Eight)((special & (shifted | 0x7f800000u)) | (~special & finite) | (x & 0x8000u) << 16);
}

/// Eight pairs of 16-bit values -> their first and their second elements.
template <bool kBf16>
SL_INLINE void split(const EightBits& x, Eight& even, Eight& odd) {
  if constexpr (kBf16) {
    even = (Eight)(x << 16), odd = (Eight)(x & 0xffff0000u);
  } else {
    widen_eight(x & 0xffffu, even);
    widen_eight(x >> 16, odd);
  }
}

/// s[h] = dot products of query h, q[h * kMaxHeadDim], with the 16 keys of a block, elements in
/// order.
template <int kCount, bool kBf16>
SL_INLINE void scores(const float* q, const uint16_t* block, int dim, Eight (*s)[4], int at) {
  Eight acc[kCount][2] = {};
  for (int i = 0; i < dim / 2; ++i) {
    Eight even[2], odd[2];
#pragma GCC unroll 2
    for (int b = 0; b < 2; ++b) {
      EightBits x;
      __builtin_memcpy(&x, block + i * 2 * kKeyBlock + b * kKeyBlock, sizeof x);
      split<kBf16>(x, even[b], odd[b]);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kCount; ++h) {
      const float q0 = q[h * kMaxHeadDim + 2 * i], q1 = q[h * kMaxHeadDim + 2 * i + 1];
#pragma GCC unroll 2
      for (int b = 0; b < 2; ++b) {
        mac(acc[h][b], even[b], q0);
        mac(acc[h][b], odd[b], q1);
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kCount; ++h) s[h][at] = acc[h][0], s[h][at + 1] = acc[h][1];
}

/// Adds weight * value for one chunk of elements; `pairs` of its pairs exist.
template <int kCount, bool kBf16, class Value>
SL_INLINE void add_values(const float (*p)[kAttentionStep], Value value, int valid, int at,
                          int pairs, int padded, float* sum) {
  Eight acc[kCount][2];
  for (int h = 0; h < kCount; ++h) __builtin_memcpy(acc[h], sum + h * padded + at, sizeof acc[h]);
  for (int j = 0; j < valid; ++j) {
    EightBits x = {};
    if (pairs == 8)
      __builtin_memcpy(&x, value(j) + at, sizeof x);
    else
      __builtin_memcpy(&x, value(j) + at, static_cast<size_t>(pairs) * 4);
    Eight even, odd;
    split<kBf16>(x, even, odd);
#pragma GCC unroll 4
    for (int h = 0; h < kCount; ++h) {
      mac(acc[h][0], even, p[h][j]);
      mac(acc[h][1], odd, p[h][j]);
    }
  }
  for (int h = 0; h < kCount; ++h) __builtin_memcpy(sum + h * padded + at, acc[h], sizeof acc[h]);
}

template <int kCount, bool kBf16, class Value>
SL_INLINE void step_of(DType t, const uint16_t* const* q, const uint16_t* k0, const uint16_t* k1,
                       Value value, int valid, int dim, float scale, Running& run, float* sum) {
  const int padded = padded_dim(dim);
  constexpr float kLowest = -3.40282347e38f;
  constexpr EightInts kPlaces = {0, 1, 2, 3, 4, 5, 6, 7};
  float wide[kCount * kMaxHeadDim];
  for (int h = 0; h < kCount; ++h) widen(t, q[h], wide + h * kMaxHeadDim, dim);
  Eight s[kCount][4] = {};
  scores<kCount, kBf16>(wide, k0, dim, s, 0);
  if (valid > kKeyBlock) scores<kCount, kBf16>(wide, k1, dim, s, 2);
  float p[kCount][kAttentionStep];
  for (int h = 0; h < kCount; ++h) {
    const float before = run.largest[h];
    Eight most = Eight{} + kLowest;
    for (int b = 0; b < 4; ++b) {
      s[h][b] = kPlaces + 8 * b < valid ? s[h][b] * scale : Eight{} + kLowest;
      most = s[h][b] > most ? s[h][b] : most;
    }
    float top = before;
    for (int i = 0; i < 8; ++i) top = most[i] > top ? most[i] : top;
    for (int b = 0; b < 4; ++b) {
      s[h][b] = s[h][b] - top;
      exp2_eight(s[h][b]);
      s[h][b] = kPlaces + 8 * b < valid ? s[h][b] : Eight{};
    }
    __builtin_memcpy(p[h], s[h], sizeof p[h]);
    if (top != before) {
      const float shrink = exp2_plain(before - top);
      run.largest[h] = top;
      for (int j = 0; j < kLanes; ++j) run.weight[h][j] = run.weight[h][j] * shrink;
      for (int d = 0; d < padded; ++d) sum[h * padded + d] = sum[h * padded + d] * shrink;
    }
    for (int j = 0; j < kLanes; ++j)
      run.weight[h][j] = run.weight[h][j] + (p[h][j] + p[h][j + kLanes]);
  }
  int at = 0;
  for (; at + kChunk <= dim; at += kChunk)
    add_values<kCount, kBf16>(p, value, valid, at, 8, padded, sum);
  if (at < dim) add_values<kCount, kBf16>(p, value, valid, at, (dim - at) / 2, padded, sum);
}

/// Adds `valid` keys, of which the first 16 lie in k0 and the rest in k1. value(j) is the row of
/// key j; only valid rows are read. `sum` holds the heads' weighted sums, padded_dim apart.
template <int kCount, class Value>
void step(DType t, const uint16_t* const* q, const uint16_t* k0, const uint16_t* k1, Value value,
          int valid, int dim, float scale, Running& run, float* sum) {
  if (t == DType::bf16)
    step_of<kCount, true>(t, q, k0, k1, value, valid, dim, scale, run, sum);
  else
    step_of<kCount, false>(t, q, k0, k1, value, valid, dim, scale, run, sum);
}

/// Divides by the sum of weights, rounds and interleaves.
SL_INLINE void finish(DType t, const Running& run, int head, const float* sum, int dim,
                      uint16_t* out) {
  const float inverse = 1.f / sum_lanes(run.weight[head]);
  float scaled[kMaxHeadDim];
  for (int at = 0; at < padded_dim(dim); at += kChunk)
    for (int i = 0; i < kChunk / 2; ++i) {
      scaled[at + 2 * i] = sum[at + i] * inverse;
      scaled[at + 2 * i + 1] = sum[at + kChunk / 2 + i] * inverse;
    }
  narrow(t, scaled, out, dim);
}

}  // namespace
}  // namespace stepladder::SL_ISA
