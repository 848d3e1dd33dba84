// The AVX-512 body of the a8 products: packed weights are unsigned bytes with an offset, tokens
// signed bytes with a scale per token or per weight group, and the offset times the tokens' stored
// sum is taken off the exact int32 sums. A sum lasts a weight group, or all of k, whatever k at a
// time the tokens are prepared in.
#pragma once

#include "formats/cpu/avx512.h"

namespace stepladder::SL_ISA {
namespace {

/// int8 tokens as they are.
struct ByteTokens {
  static constexpr int kChunk = 1 << 30;
  const int8_t* x;
  size_t stride;
  ByteTokens(const LinearArgs& a, int token)
      : x(a.x8.q + int64_t{token} * a.weight.k), stride(a.weight.k) {}
  template <int T>
  void prepare(int, int) {}
  [[gnu::always_inline]] __m512i four(int t, int k, int) const {
    return _mm512_set1_epi32(load32(x + t * stride + k));
  }
};

/// int8 tokens in the order in which nibbles come out of a word: of 8 k, 0 4 1 5 and then 2 6 3 7.
struct NibbleTokens {
  static constexpr int kChunk = 512;
  const int8_t* from;
  size_t stride;
  alignas(64) int8_t x[kTokens][kChunk];
  NibbleTokens(const LinearArgs& a, int token)
      : from(a.x8.q + int64_t{token} * a.weight.k), stride(a.weight.k) {}
  template <int T>
  [[gnu::always_inline]] void prepare(int k0, int count) {
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15));
    for (int t = 0; t < T; ++t)
      for (int i = 0; i < count; i += 64) {
        const __mmask64 mask = count - i >= 64 ? ~__mmask64{0} : (__mmask64{1} << (count - i)) - 1;
        const __m512i v = _mm512_maskz_loadu_epi8(mask, from + t * stride + k0 + i);
        _mm512_store_si512(&x[t][i], _mm512_shuffle_epi8(v, order));
      }
  }
  [[gnu::always_inline]] __m512i four(int t, int, int i) const {
    return _mm512_set1_epi32(load32(&x[t][i]));
  }
};

/// T tokens from `token` on times a tile.
template <class C, class X, Per P, int T>
void block_a8(const LinearArgs& a, const C& codec, int token, int tile, Ahead ahead) {
  const int k = a.weight.k;
  static_assert(C::kGrouped || P == Per::token);
  int groups = 1;
  if constexpr (C::kGrouped) groups = k / codec.group;
  const int x_scales = P == Per::group ? groups : 1;
  const std::byte* const base = codec.tiles + size_t(tile) * codec.tile_bytes;
  const std::byte* p = base + C::kFirst;
  const float* const x_scale = a.x8.scale + int64_t{token} * x_scales;
  const int32_t* const x_sum = a.x8.sum + int64_t{token} * groups;
  X x(a, token);
  __m512i acc[T][2];
  __m512 total[T][2];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) total[t][s] = _mm512_setzero_ps();

  for (int k0 = 0, g = 0; k0 < k; k0 += X::kChunk) {
    const int count = k - k0 < X::kChunk ? k - k0 : X::kChunk;
    x.template prepare<T>(k0, count);
    int piece = count;
    if constexpr (C::kGrouped) piece = codec.group;
    for (int i0 = 0; i0 < count; i0 += piece, ++g) {
      const std::byte* scales = base;
      if constexpr (C::kGrouped) scales = codec.open_group(p, g);
      if (C::kGrouped || k0 == 0) {
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512i offset =
              _mm512_set1_epi32(x_sum[t * groups + (C::kGrouped ? g : 0)] * -C::kOffset);
#pragma GCC unroll 2
          for (int s = 0; s < 2; ++s) acc[t][s] = offset;
        }
      }
      for (int i = i0; i < i0 + piece; i += C::kStep, p += C::kStepBytes) {
        ahead.step();
        __m512i raw[2];
#pragma GCC unroll 2
        for (int s = 0; s < 2; ++s) raw[s] = load512(p + s * 64);
#pragma GCC unroll 2
        for (int j = 0; j < C::kStep / 4; ++j) {
          __m512i w[2];
#pragma GCC unroll 2
          for (int s = 0; s < 2; ++s) w[s] = codec.bytes(raw[s], j);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            const __m512i four = x.four(t, k0 + i + 4 * j, i + 4 * j);
#pragma GCC unroll 2
            for (int s = 0; s < 2; ++s) acc[t][s] = _mm512_dpbusd_epi32(acc[t][s], w[s], four);
          }
        }
      }
      if (!C::kGrouped && k0 + count < k) continue;  // the sums go on with the next chunk
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) {
        const __m512 scale = codec.scale(scales, s);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
          const __m512 x_scaled = _mm512_set1_ps(x_scale[P == Per::group ? t * groups + g : t]);
          const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(acc[t][s]), x_scaled);
          if constexpr (C::kGrouped)
            total[t][s] = _mm512_fmadd_ps(scaled, scale, total[t][s]);
          else
            total[t][s] = _mm512_mul_ps(scaled, scale);
        }
      }
    }
  }
  store<T>(a, token, tile * tiles::kRows, total);
}

template <class C, class X, Per P>
struct A8 {
  template <int T>
  static void run(const LinearArgs& a, const C& codec, int token, int tile, Ahead ahead) {
    block_a8<C, X, P, T>(a, codec, token, tile, ahead);
  }
};
template <class C, class X, Per P>
void product_a8(const LinearArgs& a, const C& codec, Lane lane) {
  each_tile<A8<C, X, P>>(a, codec, lane);
}

}  // namespace
}  // namespace stepladder::SL_ISA
