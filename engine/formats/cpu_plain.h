// The plain body of every product, in vectors of 8 f32 lanes that the compiler lowers to what the
// instruction set has: products are multiplied, then added, because a fused multiply-add without
// hardware is a function call. Integer modes run in f32 as well: sums of at most 512 products of
// 8-bit integers are exact there.
#pragma once

#include <cstring>

#include "backends/cpu/kernels.h"
#include "formats/tiles.h"

namespace stepladder::SL_ISA {
namespace {

using F8 = float __attribute__((vector_size(32)));
using I8 = int32_t __attribute__((vector_size(32)));
using U8 = uint32_t __attribute__((vector_size(32)));
using H8 = uint16_t __attribute__((vector_size(16)));
using H16 = uint16_t __attribute__((vector_size(32)));

constexpr int kTokens = 4;   // most tokens of a block
constexpr int kChunk = 512;  // k at a time; the bound that keeps integer sums exact

// Vectors go in and out by reference: passing them by value has no fixed convention below AVX.
template <class V>
SL_INLINE void load(V& v, const void* p) {
  std::memcpy(&v, p, sizeof v);
}
SL_INLINE void widen_bf16(F8& out, const U8& v) { out = (F8)(v << 16); }
SL_INLINE void widen_f16(F8& out, const H8& h) {
  const U8 v = __builtin_convertvector(h, U8);
  const U8 sign = (v & 0x8000u) << 16, rest = (v & 0x7fffu) << 13;
  const U8 finite = (U8)((F8)rest * 0x1p112f);
  const U8 infinite = (U8)((v & 0x7c00u) == 0x7c00u);  // all ones where infinity or NaN
  out = (F8)(sign | (finite & ~infinite) | ((rest | 0x7f800000u) & infinite));
}

/// Tokens of the next block when `left` remain.
SL_INLINE int next_block(int left) {
  return left <= kTokens ? left : left < 2 * kTokens ? (left + 1) / 2 : kTokens;
}

/// A block's tokens as f32, a chunk of k at a time.
struct Tokens {
  float x[kTokens][kChunk];
};
SL_INLINE void widen_tokens(Tokens& out, const LinearArgs& a, int token, int count_tokens, int k0,
                            int count) {
  for (int t = 0; t < count_tokens; ++t) {
    const uint16_t* from =
        static_cast<const uint16_t*>(a.x.data) + int64_t{token + t} * a.x.cols + k0;
    if (a.x.dtype == DType::bf16)
      for (int i = 0; i < count; ++i) out.x[t][i] = from_bf16(from[i]);
    else
      for (int i = 0; i < count; ++i) out.x[t][i] = from_f16(from[i]);
  }
}
SL_INLINE void widen_tokens8(Tokens& out, const LinearArgs& a, int token, int count_tokens, int k0,
                             int count) {
  for (int t = 0; t < count_tokens; ++t) {
    const int8_t* from = a.x8.q + int64_t{token + t} * a.weight.k + k0;
    for (int i = 0; i < count; ++i) out.x[t][i] = static_cast<float>(from[i]);
  }
}

/// T tokens from `token` on times V vectors of 8 rows of a tile, from vector `first` on.
template <class C, Act A, int T, int V>
void block(const LinearArgs& a, const C& codec, int token, int tile, int first) {
  constexpr bool kInt = A == Act::a8;
  const int k = a.weight.k, x_groups = kInt ? k / a.x8.group : 0;
  const std::byte* const base = codec.tiles + size_t(tile) * codec.tile_bytes;
  const std::byte* p = base + C::kFirst;
  Tokens tokens;
  F8 acc[T][V], total[T][V];
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < V; ++v) acc[t][v] = total[t][v] = F8{};
  I8 sum[T][V];
  if constexpr (kInt && !C::kGrouped)
    for (int t = 0; t < T; ++t)
      for (int v = 0; v < V; ++v) sum[t][v] = I8{};

  for (int k0 = 0, g = 0; k0 < k; k0 += kChunk) {
    const int count = k - k0 < kChunk ? k - k0 : kChunk;
    if constexpr (kInt)
      widen_tokens8(tokens, a, token, T, k0, count);
    else
      widen_tokens(tokens, a, token, T, k0, count);
    int piece = count;
    if constexpr (C::kGrouped) piece = codec.group;
    for (int i0 = 0; i0 < count; i0 += piece, ++g) {
      const std::byte* scales = nullptr;
      if constexpr (C::kGrouped) scales = codec.open_group(p, g);
      for (int i = i0; i < i0 + piece; i += C::kStep, p += C::kStepBytes) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
          F8 w[C::kStep];
          codec.values(w, p, first + v);
#pragma GCC unroll 8
          for (int j = 0; j < C::kStep; ++j)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) acc[t][v] = acc[t][v] + w[j] * tokens.x[t][i + j];
        }
      }
      if constexpr (C::kGrouped) {
        for (int v = 0; v < V; ++v) {
          F8 scale;
          codec.scale(scale, scales, first + v);
          for (int t = 0; t < T; ++t) {
            if constexpr (kInt) {
              const float x_scale = a.x8.scale[int64_t{token + t} * x_groups + g];
              total[t][v] = total[t][v] + (acc[t][v] * x_scale) * scale;
            } else {
              total[t][v] = total[t][v] + acc[t][v] * scale;
            }
            acc[t][v] = F8{};
          }
        }
      } else if constexpr (kInt) {
        for (int t = 0; t < T; ++t)
          for (int v = 0; v < V; ++v) {
            sum[t][v] += __builtin_convertvector(acc[t][v], I8);
            acc[t][v] = F8{};
          }
      }
    }
  }

  for (int v = 0; v < V; ++v) {
    F8 scale;
    if constexpr (C::kScaled && !C::kGrouped) codec.scale(scale, base, first + v);
    for (int t = 0; t < T; ++t) {
      F8 out;
      if constexpr (C::kGrouped)
        out = total[t][v];
      else if constexpr (kInt)
        out = (__builtin_convertvector(sum[t][v], F8) * a.x8.scale[token + t]) * scale;
      else if constexpr (C::kScaled)
        out = acc[t][v] * scale;
      else
        out = acc[t][v];
      const int row = tile * tiles::kRows + (first + v) * 8;
      float* y = static_cast<float*>(a.y.data) + int64_t{token + t} * a.y.cols;
      for (int r = 0; r < 8 && row + r < a.weight.n; ++r) {
        float value = out[r];
        if (a.weight.bias) value = value + a.weight.bias[row + r];
        y[row + r] = a.accumulate ? y[row + r] + value : value;
      }
    }
  }
}

/// This lane's tiles, each with all tokens.
template <class C, Act A>
void product(const LinearArgs& a, const C& codec, Lane lane) {
  const int rows = live_rows(a.live);
  const Share mine = share(tiles::count(a.weight.n), lane);
  for (int tile = mine.begin; tile < mine.end; ++tile) {
    for (int token = 0; token < rows;) {
      const int t = next_block(rows - token);
      if (t == 1) {
        block<C, A, 1, 4>(a, codec, token, tile, 0);
      } else if (t == 2) {
        block<C, A, 2, 4>(a, codec, token, tile, 0);
      } else {
        for (int first = 0; first < 4; first += 2)
          t == 3 ? block<C, A, 3, 2>(a, codec, token, tile, first)
                 : block<C, A, 4, 2>(a, codec, token, tile, first);
      }
      token += t;
    }
  }
}

}  // namespace
}  // namespace stepladder::SL_ISA
