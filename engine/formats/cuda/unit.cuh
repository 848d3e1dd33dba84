// Units of tiles times units of activations, on tensor instructions: weights are the instruction's
// 16 outputs, tokens its 8 columns, so one token costs no more weights than eight.
#pragma once

#include <algorithm>

#include "backends/cuda/device/tensor.cuh"
#include "backends/cuda/device/words.cuh"
#include "formats/cuda/fragments.cuh"
#include "formats/cuda/ring.cuh"

namespace stepladder::cuda {

constexpr int kSegments = 8, kProductThreads = kSegments * kWarp;  // a warp a segment
/// Of all thread blocks of a multiprocessor.
constexpr int ring_bytes(int tokens) { return (tokens == 1 ? 176 : 96) << 10; }

/// The scales of rows g and g + 8 in a word of two.
struct ScalePair {
  float low, high;
};
template <DType kType>
__device__ ScalePair scale_pair(uint32_t word) {
  if constexpr (kType == DType::bf16)
    return {__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  else if constexpr (kType == DType::f16)
    return {from_16(kType, static_cast<uint16_t>(word)),
            from_16(kType, static_cast<uint16_t>(word >> 16))};
  else
    return {from_e8m0(static_cast<uint8_t>(word)), from_e8m0(static_cast<uint8_t>(word >> 8))};
}

template <class T>
__device__ inline T load_shared(uint32_t at) {
  if constexpr (sizeof(T) == 16) {
    uint4 x;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(at));
    return x;
  } else {
    uint32_t x;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(x) : "r"(at));
    return x;
  }
}

/// Tiles that are computed at once, so that there is always something to do.
template <class Codes>
constexpr int together(int tokens, int spans) {
  return tokens == 1 && Codes::kBits == 4 && spans < 2 ? 2 : 1;
}

/// How a product is computed. kSpans: scales of a row in a unit, of type kScale; 0 where a row has
/// one or none. kTokens: groups of eight rows. kTiles: tiles of a group, which share what is loaded
/// of the activations; even. kResident: thread blocks that shall fit on a multiprocessor, one of
/// which is the next kernel's; that says how many stages a warp's ring has.
template <class Codes_, bool kBf16_, int kSpans_, DType kScale_, int kTokens_, int kTiles_,
          int kResident_>
struct Product {
  using Codes = Codes_;
  static constexpr bool kBf16 = kBf16_;
  static constexpr int kSpans = kSpans_, kTokens = kTokens_, kTiles = kTiles_,
                       kResident = kResident_;
  static constexpr int kTogether = together<Codes>(kTokens, kSpans);
  static constexpr DType kScale = kScale_;
  static constexpr int kBlocks = unit_blocks(Codes::kBits), kUnit = kBlocks * kBlock;
  static constexpr int kScaleBytes = kSpans * 2 * bits(kScale) / 8;  // that a lane has of a unit
  static constexpr int kCodeBytes = kUnit * kTileRows * Codes::kBits / 8;
  static constexpr int kUnitBytes = kCodeBytes + 8 * kScaleBytes;
  static constexpr int kStages =
      std::min(8, ring_bytes(kTokens) / kResident / (kSegments * kTogether * kUnitBytes));
  using Stages = Ring<kTogether, kUnitBytes, kStages>;
};

/// The pair of scales of a span, whose unit's scales for rows g and g + 8 begin behind its codes.
template <class P>
__device__ inline uint32_t load_scales(uint32_t at, int span) {
  if constexpr (bits(P::kScale) == 16) return load_shared<uint32_t>(at + P::kCodeBytes + 4 * span);
  return load_shared<uint32_t>(at + P::kCodeBytes + span / 2 * 4) >> (16 * (span % 2));
}

/// sum += a unit of tiles, the first of them at shared address `at`, times a unit of x.
template <class P>
__device__ inline void multiply_unit(uint32_t at, const uint4 (&x)[P::kBlocks][P::kTokens],
                                     float (&sum)[P::kTogether][P::kTokens][4]) {
  using Codes = typename P::Codes;
  constexpr int kVectors = Codes::kVectors, kTogether = P::kTogether;
  constexpr int kSpanBlocks = P::kBlocks / (P::kSpans ? P::kSpans : 1);
  const int lane = lane_of_thread(), g = lane / 4;
  float part[kTogether][P::kTokens][4] = {};
#pragma unroll
  for (int half = 0; half < P::kBlocks / 2; ++half) {
    uint4 codes[kTogether][kVectors];
#pragma unroll
    for (int i = 0; i < kTogether * kVectors; ++i)
      codes[i / kVectors][i % kVectors] =
          load_shared<uint4>(at + i / kVectors * P::kUnitBytes + lane * 16 +
                             (half * kVectors + i % kVectors) * kUnitVectorBytes);
#pragma unroll
    for (int b = 0; b < 2; ++b) {
      const int block = half * 2 + b;
      const bool ends_span = P::kSpans && block % kSpanBlocks == kSpanBlocks - 1;
      uint32_t scales[kTogether];
      if constexpr (P::kSpans != 0)
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
          if (ends_span)
            scales[i] =
                load_scales<P>(at + i * P::kUnitBytes + g * P::kScaleBytes, block / kSpanBlocks);
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const Fragment f = Codes::fragment(codes[i], b, h);
#pragma unroll
          for (int j = 0; j < P::kTokens; ++j)
            add_product<P::kBf16>(P::kSpans ? part[i][j] : sum[i][j], f.a,
                                  h ? x[block][j].z : x[block][j].x,
                                  h ? x[block][j].w : x[block][j].y);
        }
      if constexpr (P::kSpans != 0) {
        if (!ends_span) continue;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          const ScalePair s = scale_pair<P::kScale>(scales[i]);
#pragma unroll
          for (int j = 0; j < P::kTokens; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              sum[i][j][e] = fmaf(part[i][j][e], e < 2 ? s.low : s.high, sum[i][j][e]);
              part[i][j][e] = 0.f;
            }
        }
      }
    }
  }
}

}  // namespace stepladder::cuda
