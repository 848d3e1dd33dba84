// y = x W^T for few rows, on tensor instructions: weights are the instruction's 16 outputs, tokens
// its 8 columns, so one token costs no more weights than eight.
//
// The sum over k is cut into kSegments runs of whole units, the same for every number of rows; in a
// segment sums run in the order of k, and segments are added by index. A column's bits do not
// depend on the others: a row's bits are the same among any rows.
//
// There is a thread block a multiprocessor. It has a run of tiles, of which its warps compute a few
// at a time, each over its segment. While a warp multiplies, what it needs next is on its way; the
// first weights of a kernel are sent for while the kernel before it still runs, for which shared
// memory is shared out so that one block of each fits.
#pragma once

#include <algorithm>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/kernels.h"
#include "core/round_up.h"
#include "formats/cuda/finish.cuh"
#include "formats/cuda/fragments.cuh"
#include "formats/cuda/ring.cuh"

namespace stepladder::cuda {

constexpr int kSegments = 8, kProductThreads = kSegments * kWarp;  // a warp a segment
static_assert(kProductThreads == kNormThreads);
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
  /// Tiles that are computed at once, so that there is always something to do.
  static constexpr int kTogether = kTokens == 1 && Codes::kBits == 4 ? 2 : 1;
  static constexpr DType kScale = kScale_;
  static constexpr int kBlocks = unit_blocks(Codes::kBits), kUnit = kBlocks * kBlock;
  static constexpr int kScaleBytes = kSpans * 2 * bits(kScale) / 8;  // that a lane has of a unit
  static constexpr int kCodeBytes = kUnit * kTileRows * Codes::kBits / 8;
  static constexpr int kUnitBytes = kCodeBytes + 8 * kScaleBytes;
  static constexpr int kStages =
      ring_bytes(kTokens) / kResident / (kSegments * kTogether * kUnitBytes);
  using Stages = Ring<kTogether, kUnitBytes, kStages>;
};

/// The pair of scales of a span, whose unit's scales for rows g and g + 8 begin behind its codes.
template <class P>
__device__ inline uint32_t load_scales(uint32_t at, int span) {
  if constexpr (bits(P::kScale) == 16) return load_shared<uint32_t>(at + P::kCodeBytes + 4 * span);
  return load_shared<uint32_t>(at + P::kCodeBytes + span / 2 * 4) >> (16 * (span % 2));
}

/// Bytes of a thread block's list of its tiles, which stands before the rings.
SL_INLINE int list_bytes(int tiles) { return round_up(tiles * 4, 128); }

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

template <class P>
__global__ void __launch_bounds__(kProductThreads, P::kResident)
    product_kernel(const __grid_constant__ ProductArgs p) {
  extern __shared__ __align__(128) std::byte shared[];
  using Codes = typename P::Codes;
  constexpr int kTokens = P::kTokens, kTiles = P::kTiles, kBlocks = P::kBlocks,
                kTogether = P::kTogether, kUnitBytes = P::kUnitBytes;
  // Attention, which is next behind a rotation, reads older keys and the tables before it waits:
  // all that made them is over when this kernel's wait is.
  if (p.finish != Finish::rope_append) start_next();
  const FragmentLayout& l = p.layout;
  const int warp = warp_of_thread(), lane = lane_of_thread(), g = lane / 4, t = lane % 4;
  const int k = p.weight.k, most_rows = min(p.live.capacity, kTokens * 8);
  const int first_unit = warp * l.units / kSegments, units_end = (warp + 1) * l.units / kSegments;
  const auto share = [&](unsigned block) {
    return static_cast<int>(int64_t{block} * items_of(p) / gridDim.x);
  };
  const int item = share(blockIdx.x), twice = paired(p.finish) ? 1 : 0;
  const int tiles = (share(blockIdx.x + 1) - item) << twice;  // of this block
  const auto tile = [&](int i) { return tile_of(p, item + (i >> twice), i & twice); };

  // Where the tiles begin, in pieces of 16 bytes; the last one again where one is missing.
  uint32_t* const begins = reinterpret_cast<uint32_t*>(shared);
  const int listed = round_up(tiles, kTogether);  // as many as stages have room for
  for (int i = static_cast<int>(threadIdx.x); i < listed && tiles > 0; i += kProductThreads)
    begins[i] = tile(min(i, tiles - 1)) * l.units * (kUnitBytes / 16u);
  __syncthreads();

  // Stages are a unit of tiles that are computed together: all of a group, all units, all groups.
  std::byte* const rings = shared + list_bytes(p.most_tiles);
  typename P::Stages ring(rings + warp * P::Stages::kRingBytes);
  int next_group = 0, next_tile = 0, next_unit = first_unit;
  bool more = tiles > 0 && first_unit < units_end;
  const auto send = [&] {
    const std::byte* pieces[kTogether] = {};
    if (!more) return ring.send_for(pieces);
    const std::byte* const from =
        static_cast<const std::byte*>(p.weight.data) + uint32_t(next_unit * kUnitBytes);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) pieces[i] = from + uint64_t{begins[next_tile + i]} * 16;
    ring.send_for(pieces);
    next_tile += kTogether;
    if (next_tile < min(next_group + kTiles, tiles)) return;
    next_tile = next_group;
    if (++next_unit < units_end) return;
    next_unit = first_unit, next_group += kTiles, next_tile = next_group;
    more = next_group < tiles;
  };
#pragma unroll 1
  for (int i = 0; i < P::kStages - 1; ++i) send();

  // Sums of the group in hand, then the normed input.
  float* const sums = reinterpret_cast<float*>(rings + kSegments * P::Stages::kRingBytes);
  const int tile_sums = kSegments * most_rows * kTileRows;  // floats
  const uint16_t* x = static_cast<const uint16_t*>(p.input.x.data);
  if (p.input.norm) {
    auto* const normed = reinterpret_cast<uint16_t*>(sums + kTiles * tile_sums);
    norm_row(
        p.input.type,
        [&] {
          wait_for_inputs();
          const int row = first_row(p.live);
          return row_of<const float>(p.input.x, p.input.pick ? p.input.pick[row] : row);
        },
        p.input.norm, p.input.eps, k, normed);
    __syncthreads();
    x = normed;
  } else {
    wait_for_inputs();
  }
  if (p.finish == Finish::rope_append) start_next();
  const int first = static_cast<int>(blockIdx.y) * kTokens * 8;
  const int rows = min(live_rows(p.live) - first, kTokens * 8);
  if (rows <= 0) return;

  // Activations of the unit in hand and of the next, by turns. In a column without a row stands
  // another's, and past the end of k what stands before it, where weights are zeros: what becomes
  // of them is not looked at, or nothing.
  const uint16_t* row[kTokens];
#pragma unroll
  for (int j = 0; j < kTokens; ++j)
    row[j] = x + int64_t{first + min(j * 8 + g, rows - 1)} * k + 8 * t;
  uint4 xs[2][kBlocks][kTokens];
  const auto load_x = [&](uint4(&to)[kBlocks][kTokens], int unit) {
    const auto load = [&](auto&& at) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block)
#pragma unroll
        for (int j = 0; j < kTokens; ++j)
          to[block][j] = *reinterpret_cast<const uint4*>(row[j] + at(block));
    };
    const int from = unit * P::kUnit;
    if (from + P::kUnit <= k)
      load([&](int block) { return from + block * kBlock; });
    else
      load([&](int block) { return min(from + block * kBlock, k - kBlock); });
  };
  if (first_unit < units_end) load_x(xs[0], first_unit);

  for (int group = 0; group < tiles; group += kTiles) {
    float sum[kTiles / kTogether][kTogether][kTokens][4] = {};
    const int tiles_here = min(tiles - group, kTiles);
    for (int two = first_unit; two < units_end; two += 2)
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        if (two + odd >= units_end) break;
        load_x(xs[1 - odd], two + odd + 1 < units_end ? two + odd + 1 : first_unit);
#pragma unroll
        for (int i = 0; i < kTiles / kTogether; ++i) {
          if (i * kTogether >= tiles_here) break;
          const uint32_t stage = ring.take();
          send();
          multiply_unit<P>(stage, xs[odd], sum[i]);
        }
        // The next group begins with the first of the two.
        if (odd == 0 && two + 1 >= units_end)
#pragma unroll
          for (int i = 0; i < kBlocks * kTokens; ++i)
            xs[0][i / kTokens][i % kTokens] = xs[1][i / kTokens][i % kTokens];
      }

    // [tile][segment][row][16]
    if (group > 0) __syncthreads();  // until all have read the sums of the group before
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      float* const own = sums + i * tile_sums + warp * most_rows * kTileRows + g;
#pragma unroll
      for (int j = 0; j < kTokens; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = j * 8 + 2 * t + e % 2;
          if (row < rows)
            own[row * kTileRows + e / 2 * 8] = sum[i / kTogether][i % kTogether][j][e];
        }
    }
    __syncthreads();
    const auto total = [&](int tile_here, int row, int in_tile) {
      const float* from = sums + tile_here * tile_sums + row * kTileRows + in_tile;
      float y = from[0];
#pragma unroll
      for (int s = 1; s < kSegments; ++s) y = y + from[s * most_rows * kTileRows];
      const int n = tile(group + tile_here) * kTileRows + in_tile;
      return with_scale_and_bias(p, y * (1.f / Codes::kOne), n);
    };
    const int items = tiles_here >> twice;
    for (int i = static_cast<int>(threadIdx.x); i < rows * items * kTileRows;
         i += kProductThreads) {
      const int in_tile = i % kTileRows, which = i / kTileRows % items, row = i / kTileRows / items;
      const int n = tile(group + (which << twice)) * kTileRows + in_tile;
      if (n >= p.weight.n) continue;
      if (twice)
        put_pair(p, first + row, n, total(2 * which, row, in_tile),
                 total(2 * which + 1, row, in_tile));
      else
        put(p, first + row, n, total(which, row, in_tile));
    }
  }
}

}  // namespace stepladder::cuda
