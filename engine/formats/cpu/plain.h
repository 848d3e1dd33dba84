// The plain body of every product, in vectors of 8 f32 lanes that the compiler lowers to what the
// instruction set has. Integer modes run in f32 as well: sums of at most 512 products of 8-bit
// integers are exact.
//
// Weights of 4 and 8 bits are taken out of a 32-bit word by a mask alone, so they are stored plus
// an offset that makes them unsigned, and come out times a power of two. The tokens' values are
// multiplied by its inverse beforehand, and the offset times the tokens' sum comes off at the end.
// The powers of two change no bit, save of values below 2^-100, whose last bits may be lost; what
// is not finite stays so.
// The offset has its price in rounding: errors follow (|weight| + offset) |token|, so that zeros
// beside a large token do not sum to exactly 0.
//
// One or two tokens take each weight from its code straight into their sums. More tokens share a
// panel: a few k of a tile are decoded once and multiplied with all of them. Up to a codec's
// kCodeBlocks blocks of tokens do without: decoding again costs them less than the panel's stores.
// Either way an output's sum takes the same k in the same order, so its bits do not tell which
// way it went.
#pragma once

#include <cstring>

#include "backends/cpu/kernels.h"
#include "formats/cpu/tiles.h"
#ifdef __FMA__
#include <immintrin.h>
#endif

namespace stepladder::SL_ISA {
namespace {

using F8 = float __attribute__((vector_size(32)));
using I8 = int32_t __attribute__((vector_size(32)));
using U8 = uint32_t __attribute__((vector_size(32)));
using H8 = uint16_t __attribute__((vector_size(16)));
using H16 = uint16_t __attribute__((vector_size(32)));

constexpr int kChunk = 512;  // k at a time; the bound that keeps integer sums exact
constexpr int kVectors = tiles::kRows / 8;
constexpr int kAheadBytes = 8192;    // how far ahead one or two tokens fetch, into the second level
constexpr int kPanel = 64;           // most k of a panel, which divides kChunk
constexpr int kTokens = 24;          // most tokens of a block
constexpr int kWide = 2048;          // k for which a block's tokens are widened once for all tiles
constexpr int kStride = kWide + 16;  // of one token, so that several do not share a cache set
#ifdef __AVX__
// Tokens whose sums stay in registers, of 16 that hold weights too: from a panel, and from codes.
constexpr int kMicro = 6, kMicroCodes = 4;
#else
constexpr int kMicro = 2, kMicroCodes = 1;
#endif

// Vectors go in and out by reference: passing them by value has no fixed convention below AVX.
template <class V>
SL_INLINE void load_from(V& v, const void* p) {
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

/// acc += w * x: fused where the instruction set has it, since elsewhere that is a function call.
SL_INLINE void mac(F8& acc, const F8& w, const F8& x) {
#ifdef __FMA__
  acc = (F8)_mm256_fmadd_ps((__m256)w, (__m256)x, (__m256)acc);
#else
  acc = acc + w * x;
#endif
}
SL_INLINE void broadcast(F8& out, float x) { out = F8{x, x, x, x, x, x, x, x}; }

/// The codecs' defaults: a step is loaded at once, and its value j is the weight of its k j.
struct PlainCodec {
  static constexpr int kLoads = 1;        // loads of a step, each of which gives as many k
  static constexpr int kOffset = 0;       // what comes out is the weight plus this,
  static constexpr bool kPlaced = false;  // and if so that of k kth(j), divided by factor(j)
  static constexpr int kth(int j) { return j; }
};

/// Field `at` of the `kBits` wide ones in a word, times 2^(at kBits). The topmost would come out
/// negative that way and is shifted down instead, times 1.
template <int kBits>
SL_INLINE void take_field(F8& out, const I8& word, int at) {
  constexpr int kTop = 32 - kBits;
  if (at * kBits == kTop)
    out = __builtin_convertvector((I8)((U8)word >> kTop), F8);
  else
    out = __builtin_convertvector(word & (((1 << kBits) - 1) << (at * kBits)), F8);
}
/// What undoes that power of two.
template <int kBits>
SL_INLINE constexpr float field_factor(int at) {
  return at * kBits == 32 - kBits ? 1.0f : 1.0f / static_cast<float>(1u << (at * kBits));
}

/// A block's tokens as f32, in the codec's order and times its factors: all of k where that fits,
/// else the k that are asked for.
struct Tokens {
  int first, count;
  bool whole;
  int first_group;                    // of those in `offset`
  float offset[kTokens][kWide / 32];  // what a group's offset adds to the sums of 16-bit tokens
  float x[kTokens][kStride];
};
/// Eight sums side by side, then those in order.
SL_INLINE float sum_of(const float* x, int count) {
  F8 sums{}, v;
  for (int i = 0; i < count; i += 8) {
    load_from(v, x + i);
    sums = sums + v;
  }
  float out = sums[0];
  for (int i = 1; i < 8; ++i) out = out + sums[i];
  return out;
}
template <class C, ActMode A>
SL_INLINE void widen(Tokens& out, const C& codec, const LinearArgs& a, int k0, int count) {
  if constexpr (C::kGrouped) out.first_group = k0 / codec.group;
  for (int t = 0; t < out.count; ++t) {
    float* const to = out.x[t];
    if constexpr (A.act == Act::a8) {
      const int8_t* from = a.x8.q + int64_t{out.first + t} * a.weight.k + k0;
      for (int i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
    } else {
      const uint16_t* from =
          static_cast<const uint16_t*>(a.x.data) + int64_t{out.first + t} * a.x.cols + k0;
      if (a.x.dtype == DType::bf16)
        for (int i = 0; i < count; ++i) to[i] = from_bf16(from[i]);
      else
        for (int i = 0; i < count; ++i) to[i] = from_f16(from[i]);
      if constexpr (C::kOffset && C::kGrouped)
        for (int i = 0; i < count; i += codec.group)
          out.offset[t][i / codec.group] = sum_of(to + i, codec.group) * C::kOffset;
    }
    if constexpr (C::kPlaced)
      for (int i = 0; i < count; i += C::kStep) {
        float step[C::kStep];
        std::memcpy(step, to + i, sizeof step);
        for (int j = 0; j < C::kStep; ++j) to[i + j] = step[C::kth(j)] * C::factor(j);
      }
  }
}
/// k0 .. k0 + count of the first token; the others follow at kStride. With groups it is whole ones.
template <class C, ActMode A>
SL_INLINE const float* at(Tokens& tokens, const C& codec, const LinearArgs& a, int k0, int count) {
  if (tokens.whole) return tokens.x[0] + k0;
  widen<C, A>(tokens, codec, a, k0, count);
  return tokens.x[0];
}

/// The sums of one token and one vector of output rows, from the first k to the last.
template <class C, ActMode A>
struct Sum {
  static constexpr bool kInt = A.act == Act::a8;
  static_assert(C::kGrouped || A.per == Per::token);
  F8 total{};  // of the groups that are done
  I8 whole{};  // of the chunks that are done, without groups

  /// Takes what group g of the weights came to, and clears it.
  [[gnu::always_inline]] void close_group(F8& acc, const F8& scale, const LinearArgs& a,
                                          const Tokens& tokens, int t, int g) {
    if constexpr (kInt) {
      const int64_t token = tokens.first + t, at = token * (a.weight.k / a.x8.sum_group) + g;
      const float offset = static_cast<float>(a.x8.sum[at] * C::kOffset);
      total = total + ((acc - offset) * a.x8.scale[A.per == Per::group ? at : token]) * scale;
    } else if constexpr (C::kOffset) {
      total = total + (acc - tokens.offset[t][g - tokens.first_group]) * scale;
    } else {
      total = total + acc * scale;
    }
    acc = F8{};
  }
  /// Takes what a chunk came to, a whole number, and clears it.
  [[gnu::always_inline]] void close_chunk(F8& acc) {
    whole += __builtin_convertvector(acc, I8);
    acc = F8{};
  }
  /// Writes the outputs from `row` on: + bias, + what y holds when accumulating; never beyond n.
  [[gnu::always_inline]] void store(const LinearArgs& a, int token, int row, const F8& acc,
                                    const F8& scale) {
    F8 out;
    if constexpr (C::kGrouped)
      out = total;
    else if constexpr (kInt)
      out =
          (__builtin_convertvector(whole - a.x8.sum[token] * C::kOffset, F8) * a.x8.scale[token]) *
          scale;
    else if constexpr (C::kScaled)
      out = acc * scale;
    else
      out = acc;
    float* y = static_cast<float*>(a.y.data) + int64_t{token} * a.y.cols + row;
    if (row + 8 <= a.weight.n) {
      F8 bias, held;
      if (a.weight.bias) {
        load_from(bias, a.weight.bias + row);
        out = out + bias;
      }
      if (a.accumulate) {
        load_from(held, y);
        out = held + out;
      }
      std::memcpy(y, &out, sizeof out);
      return;
    }
    for (int r = 0; r < 8 && row + r < a.weight.n; ++r) {
      float value = out[r];
      if (a.weight.bias) value = value + a.weight.bias[row + r];
      y[r] = a.accumulate ? y[r] + value : value;
    }
  }
};

/// T tokens of a block times a tile, weights straight from their codes.
template <class C, ActMode A, int T>
void direct(const LinearArgs& a, const C& codec, Tokens& tokens, int tile) {
  constexpr bool kInt = A.act == Act::a8;
  constexpr int kGives = C::kStep / C::kLoads;
  const int k = a.weight.k, row = tokens.first;
  const std::byte* const base = codec.tiles + size_t(tile) * codec.tile_bytes;
  const std::byte* p = base + C::kFirst;
  F8 acc[T][kVectors];
  Sum<C, A> sum[T][kVectors];
  for (int t = 0; t < T; ++t)
    for (int v = 0; v < kVectors; ++v) acc[t][v] = F8{};

  for (int k0 = 0, g = 0; k0 < k; k0 += kChunk) {
    const int count = k - k0 < kChunk ? k - k0 : kChunk;
    const float* const x = at<C, A>(tokens, codec, a, k0, count);
    int piece = count;
    if constexpr (C::kGrouped) piece = codec.group;
    for (int i0 = 0; i0 < count; i0 += piece, ++g) {
      const std::byte* scales = nullptr;
      if constexpr (C::kGrouped) scales = codec.open_group(p, g);
      for (int i = i0; i < i0 + piece; i += C::kStep, p += C::kStepBytes) {
        static_assert(C::kStepBytes == 128);
        __builtin_prefetch(p + kAheadBytes, 0, 2);
        __builtin_prefetch(p + kAheadBytes + 64, 0, 2);
#pragma GCC unroll 2
        for (int part = 0; part < C::kLoads; ++part) {
          typename C::Raw raw[kVectors];
#pragma GCC unroll 4
          for (int v = 0; v < kVectors; ++v) codec.load(raw[v], p, v, part);
#pragma GCC unroll 8
          for (int j = 0; j < kGives; ++j) {
            F8 xs[T];
#pragma GCC unroll 2
            for (int t = 0; t < T; ++t) broadcast(xs[t], x[t * kStride + i + part * kGives + j]);
#pragma GCC unroll 4
            for (int v = 0; v < kVectors; ++v) {
              F8 w;
              codec.value(w, raw[v], j);
#pragma GCC unroll 2
              for (int t = 0; t < T; ++t) mac(acc[t][v], w, xs[t]);
            }
          }
        }
      }
      if constexpr (C::kGrouped) {
        for (int v = 0; v < kVectors; ++v) {
          F8 scale;
          codec.scale(scale, scales, v);
          for (int t = 0; t < T; ++t) sum[t][v].close_group(acc[t][v], scale, a, tokens, t, g);
        }
      } else if constexpr (kInt) {
        for (int t = 0; t < T; ++t)
          for (int v = 0; v < kVectors; ++v) sum[t][v].close_chunk(acc[t][v]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    F8 scale{};
    if constexpr (C::kScaled && !C::kGrouped) codec.scale(scale, base, v);
    for (int t = 0; t < T; ++t)
      sum[t][v].store(a, row + t, tile * tiles::kRows + v * 8, acc[t][v], scale);
  }
}

/// A few k of a tile, decoded, and the sums so far of all tokens of a block.
struct Panel {
  F8 w[kPanel][kVectors];
  F8 acc[kTokens][kVectors];
};

/// What to fetch while a panel is multiplied, and how far to go on with each step.
struct Ahead {
  const std::byte* at;
  size_t pace;
};

/// Adds `count` k to the sums of T tokens from `token` on; x: of the first of them. The weights
/// come out of the panel or, where decoding costs next to nothing, from their codes at `p`.
template <bool kCodes, class C, int T>
SL_INLINE void add_block(const C& codec, Panel& panel, const std::byte* p, int token,
                         const float* x, int count, Ahead& ahead) {
  constexpr int kStep = kCodes ? C::kStep : 1, kLoads = kCodes ? C::kLoads : 1;
  for (int half = 0; half < kVectors; half += 2) {
    F8 acc[T][2];
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t)
      acc[t][0] = panel.acc[token + t][half], acc[t][1] = panel.acc[token + t][half + 1];
    const std::byte *next = ahead.at, *step = p;
    for (int i = 0; i < count; i += kStep, step += C::kStepBytes, next += kStep * ahead.pace) {
      __builtin_prefetch(next);
#pragma GCC unroll 2
      for (int part = 0; part < kLoads; ++part) {
        typename C::Raw raw[2];
        if constexpr (kCodes)
          codec.load(raw[0], step, half, part), codec.load(raw[1], step, half + 1, part);
#pragma GCC unroll 8
        for (int j = 0; j < kStep / kLoads; ++j) {
          F8 w0, w1;
          if constexpr (kCodes)
            codec.value(w0, raw[0], j), codec.value(w1, raw[1], j);
          else
            w0 = panel.w[i][half], w1 = panel.w[i][half + 1];
#pragma GCC unroll 6
          for (int t = 0; t < T; ++t) {
            F8 xs;
            broadcast(xs, x[t * kStride + i + part * (kStep / kLoads) + j]);
            mac(acc[t][0], w0, xs);
            mac(acc[t][1], w1, xs);
          }
        }
      }
    }
    ahead.at = next;
#pragma GCC unroll 6
    for (int t = 0; t < T; ++t)
      panel.acc[token + t][half] = acc[t][0], panel.acc[token + t][half + 1] = acc[t][1];
  }
}

/// The same for all tokens of a block, `most` at a time; x: of the first token.
template <bool kCodes, class C>
SL_INLINE void add_tokens(const C& codec, Panel& panel, const std::byte* p, int tokens, int most,
                          const float* x, int count, const std::byte* next) {
  int blocks = (tokens + most - 1) / most;
  // The next weights come from memory while these are multiplied.
  Ahead ahead{next, size_t(C::kStepBytes / C::kStep + 2 * blocks - 1) / size_t(2 * blocks)};
  for (int t = 0, n; t < tokens; t += n, x += n * kStride, --blocks) {
    n = (tokens - t + blocks - 1) / blocks;
    switch (n) {
      case 1:
        add_block<kCodes, C, 1>(codec, panel, p, t, x, count, ahead);
        break;
      case 2:
        add_block<kCodes, C, 2>(codec, panel, p, t, x, count, ahead);
        break;
      case 3:
        add_block<kCodes, C, 3>(codec, panel, p, t, x, count, ahead);
        break;
      case 4:
        add_block<kCodes, C, 4>(codec, panel, p, t, x, count, ahead);
        break;
      case 5:
        add_block<kCodes, C, 5>(codec, panel, p, t, x, count, ahead);
        break;
      default:
        add_block<kCodes, C, 6>(codec, panel, p, t, x, count, ahead);
        break;
    }
  }
}

/// All tokens of a block times a tile; each weight is decoded once.
template <class C, ActMode A>
void shared(const LinearArgs& a, const C& codec, Tokens& tokens, int tile) {
  constexpr bool kInt = A.act == Act::a8;
  constexpr int kGives = C::kStep / C::kLoads;
  const int k = a.weight.k, row = tokens.first;
  const std::byte* const base = codec.tiles + size_t(tile) * codec.tile_bytes;
  const std::byte* p = base + C::kFirst;
  Panel panel;
  Sum<C, A> sum[kTokens][kVectors];
  for (int t = 0; t < tokens.count; ++t)
    for (int v = 0; v < kVectors; ++v) panel.acc[t][v] = F8{};

  int group = k;
  if constexpr (C::kGrouped) group = codec.group;
  const std::byte* scales = nullptr;
  const float* x = nullptr;
  for (int k0 = 0, in_group = 0, g = 0; k0 < k;) {
    const int left = group - in_group, count = left < kPanel ? left : kPanel;
    if constexpr (C::kGrouped) {
      if (in_group == 0) scales = codec.open_group(p, g), x = at<C, A>(tokens, codec, a, k0, group);
    } else {
      x = at<C, A>(tokens, codec, a, k0, count);
    }
    const std::byte* const next = p + count / C::kStep * C::kStepBytes;
    if (tokens.count <= C::kCodeBlocks * kMicroCodes) {
      add_tokens<true, C>(codec, panel, p, tokens.count, kMicroCodes, x, count, next);
    } else {
      for (int i = 0; i < count; i += C::kStep, p += C::kStepBytes)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
#pragma GCC unroll 2
          for (int part = 0; part < C::kLoads; ++part) {
            typename C::Raw raw;
            codec.load(raw, p, v, part);
#pragma GCC unroll 8
            for (int j = 0; j < kGives; ++j) codec.value(panel.w[i + part * kGives + j][v], raw, j);
          }
      add_tokens<false, C>(codec, panel, p, tokens.count, kMicro, x, count, next);
    }
    p = next, x += count;
    k0 += count, in_group += count;
    if constexpr (C::kGrouped) {
      if (in_group == group) {
        for (int v = 0; v < kVectors; ++v) {
          F8 scale;
          codec.scale(scale, scales, v);
          for (int t = 0; t < tokens.count; ++t)
            sum[t][v].close_group(panel.acc[t][v], scale, a, tokens, t, g);
        }
        in_group = 0, ++g;
      }
    } else if constexpr (kInt) {
      if (k0 % kChunk == 0 || k0 == k)
        for (int t = 0; t < tokens.count; ++t)
          for (int v = 0; v < kVectors; ++v) sum[t][v].close_chunk(panel.acc[t][v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    F8 scale{};
    if constexpr (C::kScaled && !C::kGrouped) codec.scale(scale, base, v);
    for (int t = 0; t < tokens.count; ++t)
      sum[t][v].store(a, row + t, tile * tiles::kRows + v * 8, panel.acc[t][v], scale);
  }
}

/// A block of tokens times some tiles.
template <class C, ActMode A>
void times_tiles(const LinearArgs& a, const C& codec, Tokens& tokens, Share mine) {
  for (int tile = mine.begin; tile < mine.end; ++tile) {
    if (tokens.count == 1)
      direct<C, A, 1>(a, codec, tokens, tile);
    else if (tokens.count == 2)
      direct<C, A, 2>(a, codec, tokens, tile);
    else
      shared<C, A>(a, codec, tokens, tile);
  }
}

/// All tokens times this lane's tiles, block by block.
template <class C, ActMode A>
void product(const LinearArgs& a, const C& codec, Lane lane) {
  const int rows = live_rows(a.live), blocks = (rows + kTokens - 1) / kTokens;
  Tokens tokens;
  tokens.first = -1;
  for (int at = first_part(lane); at < blocks * lane.parts; at = next_part(lane, at)) {
    if (const int first = at / lane.parts * kTokens; first != tokens.first) {
      tokens.first = first, tokens.count = rows - first < kTokens ? rows - first : kTokens;
      tokens.whole = a.weight.k <= kWide;
      if (tokens.whole) widen<C, A>(tokens, codec, a, 0, a.weight.k);
    }
    times_tiles<C, A>(a, codec, tokens, share(tiles::count(a.weight.n), part_of(lane, at)));
  }
}

}  // namespace
}  // namespace stepladder::SL_ISA
