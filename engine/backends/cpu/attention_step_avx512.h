// One step of attention for AVX-512: 32 keys against up to four query heads of one row. A key block
// holds two elements of 16 keys in each 64 bytes, so one register of scores serves 16 keys. Sums
// over values keep even and odd elements in separate registers, 32 elements in a pair, because that
// is how one shift and one mask widen a 16-bit row; finish() interleaves them again.
#pragma once

#include "backends/cpu/kv_layout.h"
#include "backends/cpu/simd.h"

namespace stepladder::SL_ISA {
namespace {

constexpr int kHeads = 4;         // query heads a step serves together
constexpr int kMaxHeadDim = 256;  // elements of a head
constexpr int kPair = 32;         // elements in a pair of registers

/// Elements a running sum takes.
SL_INLINE int padded_dim(int head_dim) { return (head_dim + kPair - 1) / kPair * kPair; }

/// What a row's heads have seen so far: the largest score, the sum of weights in 16 parts by key
/// position, and the weighted sum of values.
struct Running {
  float largest[kHeads];
  alignas(64) float weight[kHeads][kLanes];
};

struct Split {
  __m512 even, odd;
};

template <bool kBf16>
SL_INLINE Split split(__m512i x) {
  if constexpr (kBf16)
    return {
        _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)),
        _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
  else
    return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)),
            _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(x, 16)))};
}

SL_INLINE int pair_at(const uint16_t* q) {
  int x;
  __builtin_memcpy(&x, q, 4);
  return x;
}

/// s[h][b] = dot products of query h with the 16 keys of block b, elements in order.
template <int kCount, int kBlocks, bool kBf16>
SL_INLINE void scores(const uint16_t* const* q, const uint16_t* const* k, int dim,
                      __m512 (&s)[kCount][2]) {
  for (int h = 0; h < kCount; ++h) s[h][0] = s[h][1] = _mm512_setzero_ps();
  for (int i = 0; i < dim / 2; ++i) {
    __m512i key[kBlocks];
    for (int b = 0; b < kBlocks; ++b) key[b] = _mm512_loadu_si512(k[b] + i * 2 * kKeyBlock);
    for (int h = 0; h < kCount; ++h) {
      if constexpr (kBf16) {
        const __m512i x = _mm512_set1_epi32(pair_at(q[h] + 2 * i));
        for (int b = 0; b < kBlocks; ++b)
          s[h][b] = _mm512_dpbf16_ps(s[h][b], (__m512bh)key[b], (__m512bh)x);
      } else {
        const __m512 even = _mm512_set1_ps(widen_f16(q[h][2 * i]));
        const __m512 odd = _mm512_set1_ps(widen_f16(q[h][2 * i + 1]));
        for (int b = 0; b < kBlocks; ++b) {
          const Split x = split<false>(key[b]);
          s[h][b] = _mm512_fmadd_ps(even, x.even, s[h][b]);
          s[h][b] = _mm512_fmadd_ps(odd, x.odd, s[h][b]);
        }
      }
    }
  }
}

/// Adds weight * value for `kPairs` register pairs from element `at` on.
template <int kCount, int kPairs, bool kBf16, class Value>
SL_INLINE void add_values(const float (*p)[kAttentionStep], const __m512* shrink, Value value,
                          int valid, int at, int dim, float* sum) {
  const int padded = padded_dim(dim);
  __m512 acc[kCount][kPairs][2];
  __mmask16 mask[kPairs];
  for (int c = 0; c < kPairs; ++c) mask[c] = lanes_below((dim - at) / 2, c * kLanes);
  for (int h = 0; h < kCount; ++h)
    for (int c = 0; c < kPairs; ++c)
      for (int e = 0; e < 2; ++e)
        acc[h][c][e] = _mm512_mul_ps(
            _mm512_loadu_ps(sum + h * padded + at + c * kPair + e * kLanes), shrink[h]);
  for (int j = 0; j < valid; ++j) {
    const uint16_t* row = value(j) + at;
    Split v[kPairs];
    for (int c = 0; c < kPairs; ++c)
      v[c] = split<kBf16>(_mm512_maskz_loadu_epi32(mask[c], row + c * kPair));
    for (int h = 0; h < kCount; ++h) {
      const __m512 w = _mm512_set1_ps(p[h][j]);
      for (int c = 0; c < kPairs; ++c) {
        acc[h][c][0] = _mm512_fmadd_ps(w, v[c].even, acc[h][c][0]);
        acc[h][c][1] = _mm512_fmadd_ps(w, v[c].odd, acc[h][c][1]);
      }
    }
  }
  for (int h = 0; h < kCount; ++h)
    for (int c = 0; c < kPairs; ++c)
      for (int e = 0; e < 2; ++e)
        _mm512_storeu_ps(sum + h * padded + at + c * kPair + e * kLanes, acc[h][c][e]);
}

template <int kCount, bool kBf16, class Value>
SL_INLINE void step_of(const uint16_t* const* q, const uint16_t* k0, const uint16_t* k1,
                       Value value, int valid, int dim, float scale, Running& run, float* sum) {
  const uint16_t* const k[2] = {k0, k1};
  __m512 s[kCount][2];
  if (valid > kKeyBlock)
    scores<kCount, 2, kBf16>(q, k, dim, s);
  else
    scores<kCount, 1, kBf16>(q, k, dim, s);
  const __mmask32 live = valid >= 32 ? ~__mmask32{0} : (__mmask32{1} << valid) - 1;
  const __mmask16 low = static_cast<__mmask16>(live), high = static_cast<__mmask16>(live >> 16);
  const __m512 unit = _mm512_set1_ps(scale), least = _mm512_set1_ps(-__builtin_inff());
  alignas(64) float p[kCount][kAttentionStep];
  __m512 shrink[kCount];
  for (int h = 0; h < kCount; ++h) {
    const __m512 a = _mm512_mask_mul_ps(least, low, s[h][0], unit);
    const __m512 b = _mm512_mask_mul_ps(least, high, s[h][1], unit);
    const float seen = _mm512_reduce_max_ps(_mm512_max_ps(a, b)), before = run.largest[h];
    const float top = seen > before ? seen : before;
    run.largest[h] = top;
    const __m512 m = _mm512_set1_ps(top);
    const __m512 pa = _mm512_maskz_mov_ps(low, exp2_16(_mm512_sub_ps(a, m)));
    const __m512 pb = _mm512_maskz_mov_ps(high, exp2_16(_mm512_sub_ps(b, m)));
    shrink[h] = exp2_16(_mm512_set1_ps(before - top));
    const __m512 weight = _mm512_mul_ps(_mm512_load_ps(run.weight[h]), shrink[h]);
    _mm512_store_ps(run.weight[h], _mm512_add_ps(weight, _mm512_add_ps(pa, pb)));
    _mm512_store_ps(p[h], pa);
    _mm512_store_ps(p[h] + kLanes, pb);
  }
  int at = 0;
  for (; at + kPair < dim; at += 2 * kPair)
    add_values<kCount, 2, kBf16>(p, shrink, value, valid, at, dim, sum);
  if (at < dim) add_values<kCount, 1, kBf16>(p, shrink, value, valid, at, dim, sum);
}

/// Adds `valid` keys, of which the first 16 lie in k0 and the rest in k1. value(j) is the row of
/// key j; only valid rows are read. `sum` holds the heads' weighted sums, padded_dim apart.
template <int kCount, class Value>
void step(DType t, const uint16_t* const* q, const uint16_t* k0, const uint16_t* k1, Value value,
          int valid, int dim, float scale, Running& run, float* sum) {
  if (t == DType::bf16)
    step_of<kCount, true>(q, k0, k1, value, valid, dim, scale, run, sum);
  else
    step_of<kCount, false>(q, k0, k1, value, valid, dim, scale, run, sum);
}

/// Divides by the sum of weights, rounds and interleaves.
SL_INLINE void finish(DType t, const Running& run, int head, const float* sum, int dim,
                      uint16_t* out) {
  const __m512 inverse = _mm512_set1_ps(1.f / sum_lanes(run.weight[head]));
  for (int at = 0; at < dim; at += kPair) {
    const __m512 even = _mm512_mul_ps(_mm512_loadu_ps(sum + at), inverse);
    const __m512 odd = _mm512_mul_ps(_mm512_loadu_ps(sum + at + kLanes), inverse);
    const __m512i low = _mm512_cvtepu16_epi32(narrow_16(t, even));
    const __m512i high = _mm512_cvtepu16_epi32(narrow_16(t, odd));
    _mm512_mask_storeu_epi32(out + at, lanes_below((dim - at) / 2, 0),
                             _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

}  // namespace
}  // namespace stepladder::SL_ISA
