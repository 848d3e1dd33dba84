// The AVX-512 body of the a16 products: one block multiplies a few tokens with one tile.
// A codec turns a step of packed weights into vectors of [16 rows][2 k] bf16 pairs; every output
// keeps one accumulator that takes k in order, so its bits do not depend on the block it is in.
#pragma once

// g++ 12 reports the deliberately undefined vectors of its own intrinsics.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop

#include <cstring>

#include "backends/cpu/kernels.h"
#include "formats/cpu/tiles.h"

namespace stepladder::SL_ISA {
namespace {

/// How far ahead of the step a block fetches. Into the second-level cache: into the first one, or
/// from less far, one row loses up to a fifth of the bandwidth and 8 rows more.
constexpr int kAheadBytes = 8192;
/// Tiles beyond this do not fit twice in a second-level cache.
constexpr size_t kNearTile = size_t{384} << 10;
constexpr int kTokens = 8;  // most tokens of a block: 16 accumulators, the weights' decoding shared

SL_INLINE int load32(const void* p) {
  int v;
  std::memcpy(&v, p, 4);
  return v;
}
SL_INLINE __m512i load512(const void* p) { return _mm512_loadu_si512(p); }

/// Tokens of the next block when `left` remain.
SL_INLINE int next_block(int left) {
  return left <= kTokens ? left : left < 2 * kTokens ? (left + 1) / 2 : kTokens;
}

/// Writes T x 2 accumulators to y: + bias, + what y holds when accumulating; never beyond n.
template <int T>
SL_INLINE void store(const LinearArgs& a, int token, int row, const __m512 (&v)[T][2]) {
  const int n = a.weight.n;
#pragma GCC unroll 2
  for (int s = 0; s < 2; ++s) {
    const int at = row + s * tiles::kStrip, left = n - at;
    if (left <= 0) break;
    const __mmask16 mask = left >= 16 ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
    const __m512 bias =
        a.weight.bias ? _mm512_maskz_loadu_ps(mask, a.weight.bias + at) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      float* y = static_cast<float*>(a.y.data) + int64_t{token + t} * a.y.cols + at;
      __m512 out = v[t][s];
      if (a.weight.bias) out = _mm512_add_ps(out, bias);
      if (a.accumulate) out = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y), out);
      _mm512_mask_storeu_ps(y, mask, out);
    }
  }
}

/// Tokens as they are: bf16 pairs are broadcast from memory.
struct PairTokens {
  static constexpr int kChunk = 1 << 30;
  const std::byte* x;
  size_t stride;  // bytes of a token
  PairTokens(const LinearArgs& a, int token)
      : x(static_cast<const std::byte*>(a.x.data) + int64_t{token} * a.x.cols * 2),
        stride(a.x.cols * 2) {}
  template <int T>
  [[gnu::always_inline]] void prepare(int, int) {}

  template <class C, int T>
  [[gnu::always_inline]] void mac(__m512 (&acc)[T][2], const __m512i (&w)[2], int k, int) const {
    const std::byte* at = x + size_t(k) * 2;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(load32(at + t * stride));
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) acc[t][s] = _mm512_dpbf16_ps(acc[t][s], (__m512bh)w[s], pair);
    }
  }
};

/// Tokens widened to f32, a chunk of k at a time: for 16-bit types that have no dot product.
struct FloatTokens {
  static constexpr int kChunk = 512;  // 8 tokens of it fill half of a 32 KB first-level cache
  const LinearArgs& a;
  const int token;
  alignas(64) float x[kTokens][kChunk];
  FloatTokens(const LinearArgs& args, int first) : a(args), token(first) {}

  template <int T>
  [[gnu::always_inline]] void prepare(int k0, int count) {
    for (int t = 0; t < T; ++t) {
      const uint16_t* from =
          static_cast<const uint16_t*>(a.x.data) + int64_t{token + t} * a.x.cols + k0;
      for (int i = 0; i < count; i += 16) {
        const int left = count - i;
        const __mmask16 mask = left >= 16 ? __mmask16(0xffff) : __mmask16((1u << left) - 1);
        const __m256i v = _mm256_maskz_loadu_epi16(mask, from + i);
        const __m512 f = a.x.dtype == DType::bf16
                             ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16))
                             : _mm512_cvtph_ps(v);
        _mm512_store_ps(&x[t][i], f);
      }
    }
  }

  template <class C, int T>
  [[gnu::always_inline]] void mac(__m512 (&acc)[T][2], const __m512i (&w)[2], int, int i) const {
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) {
      const __m512 even = C::even(w[s]), odd = C::odd(w[s]);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        acc[t][s] = _mm512_fmadd_ps(even, _mm512_set1_ps(x[t][i]), acc[t][s]);
        acc[t][s] = _mm512_fmadd_ps(odd, _mm512_set1_ps(x[t][i + 1]), acc[t][s]);
      }
    }
  }
};

/// What codecs of bf16 pairs share.
struct PairCodec {
  [[gnu::always_inline]] static __m512 even(__m512i w) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
  }
  [[gnu::always_inline]] static __m512 odd(__m512i w) {
    return _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32(int(0xffff0000u))));
  }
};

/// Where a block prefetches from, how many bytes further with each of its steps, and where to stop:
/// at the end of the weights.
struct Ahead {
  const std::byte* at;
  int pace;
  const std::byte* last;

  [[gnu::always_inline]] void step() {
    const std::byte* line = at < last ? at : last;
    _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(line + 64), _MM_HINT_T1);
    at += pace;
  }
};

/// With one block a tile, memory is the limit: look a little ahead in the stream. With more, the
/// second and later blocks find the tile in a near cache and memory would idle, so each of the
/// `blocks` fetches its part of the next tile.
SL_INLINE Ahead look_ahead(const std::byte* tile, size_t tile_bytes, int block, int blocks,
                           const std::byte* end) {
  const std::byte* const last = end - 128;
  if (blocks == 1 || tile_bytes > kNearTile) return {tile + kAheadBytes, 128, last};
  return {tile + tile_bytes + tile_bytes / blocks * block, 128 / blocks, last};
}

/// T tokens from `token` on times a tile.
template <class C, class X, int T>
void block_a16(const LinearArgs& a, const C& codec, int token, int tile, Ahead ahead) {
  const int k = a.weight.k;
  const std::byte* const base = codec.tiles + size_t(tile) * codec.tile_bytes;
  const std::byte* p = base + C::kFirst;
  X x(a, token);
  __m512 acc[T][2], total[T][2];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
    for (int s = 0; s < 2; ++s) acc[t][s] = total[t][s] = _mm512_setzero_ps();

  for (int k0 = 0, g = 0; k0 < k; k0 += X::kChunk) {
    const int count = k - k0 < X::kChunk ? k - k0 : X::kChunk;
    x.template prepare<T>(k0, count);
    int piece = count;
    if constexpr (C::kGrouped) piece = codec.group;
    for (int i0 = 0; i0 < count; i0 += piece, ++g) {
      const std::byte* scales = nullptr;
      if constexpr (C::kGrouped) scales = codec.open_group(p, g);
      for (int i = i0; i < i0 + piece; i += C::kStep, p += C::kStepBytes) {
        ahead.step();
        typename C::Raw raw[2];
#pragma GCC unroll 2
        for (int s = 0; s < 2; ++s) codec.load(raw[s], p + s * 64);
#pragma GCC unroll 4
        for (int j = 0; j < C::kStep / 2; ++j) {
          __m512i w[2];
#pragma GCC unroll 2
          for (int s = 0; s < 2; ++s) w[s] = codec.pair(raw[s], j);
          x.template mac<C, T>(acc, w, k0 + i + 2 * j, i + 2 * j);
        }
      }
      if constexpr (C::kGrouped) {
#pragma GCC unroll 2
        for (int s = 0; s < 2; ++s) {
          const __m512 scale = codec.scale(scales, s);
#pragma GCC unroll 8
          for (int t = 0; t < T; ++t) {
            total[t][s] = _mm512_fmadd_ps(scale, acc[t][s], total[t][s]);
            acc[t][s] = _mm512_setzero_ps();
          }
        }
      }
    }
  }
  if constexpr (C::kGrouped) {
    store<T>(a, token, tile * tiles::kRows, total);
  } else {
    if constexpr (C::kScaled) {
#pragma GCC unroll 2
      for (int s = 0; s < 2; ++s) {
        const __m512 scale = codec.scale(base, s);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) acc[t][s] = _mm512_mul_ps(acc[t][s], scale);
      }
    }
    store<T>(a, token, tile * tiles::kRows, acc);
  }
}

/// All tokens times some tiles; Block::run<T> is the body.
template <class Block, class C>
SL_INLINE void times_tiles(const LinearArgs& a, const C& codec, Share mine, int rows, int blocks,
                           const std::byte* end) {
  for (int tile = mine.begin; tile < mine.end; ++tile) {
    const std::byte* const base = codec.tiles + size_t(tile) * codec.tile_bytes;
    for (int token = 0, i = 0; token < rows; ++i) {
      const int t = next_block(rows - token);
      const Ahead ahead = look_ahead(base, codec.tile_bytes, i, blocks, end);
      switch (t) {
        case 1:
          Block::template run<1>(a, codec, token, tile, ahead);
          break;
        case 2:
          Block::template run<2>(a, codec, token, tile, ahead);
          break;
        case 3:
          Block::template run<3>(a, codec, token, tile, ahead);
          break;
        case 4:
          Block::template run<4>(a, codec, token, tile, ahead);
          break;
        case 5:
          Block::template run<5>(a, codec, token, tile, ahead);
          break;
        case 6:
          Block::template run<6>(a, codec, token, tile, ahead);
          break;
        case 7:
          Block::template run<7>(a, codec, token, tile, ahead);
          break;
        default:
          Block::template run<8>(a, codec, token, tile, ahead);
          break;
      }
      token += t;
    }
  }
}

/// This lane's tiles, each with all tokens.
template <class Block, class C>
void each_tile(const LinearArgs& a, const C& codec, Lane lane) {
  const int rows = live_rows(a.live), count = tiles::count(a.weight.n);
  int blocks = 0;
  for (int token = 0; token < rows; token += next_block(rows - token)) ++blocks;
  const std::byte* const end = codec.tiles + size_t(count) * codec.tile_bytes;
  for (int at = first_part(lane); at < lane.parts; at = next_part(lane, at))
    times_tiles<Block>(a, codec, share(count, part_of(lane, at)), rows, blocks, end);
}

template <class C, class X>
struct A16 {
  template <int T>
  static void run(const LinearArgs& a, const C& codec, int token, int tile, Ahead ahead) {
    block_a16<C, X, T>(a, codec, token, tile, ahead);
  }
};
template <class C, class X>
void product(const LinearArgs& a, const C& codec, Lane lane) {
  each_tile<A16<C, X>>(a, codec, lane);
}

}  // namespace
}  // namespace stepladder::SL_ISA
