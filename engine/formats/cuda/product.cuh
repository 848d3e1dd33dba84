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
#include "formats/cuda/stream.cuh"

namespace stepladder::cuda {

static_assert(kProductThreads == kNormThreads);

template <class P>
__global__ void __maxnreg__(P::kResident == 2 ? kRegistersBeside : 255)
    product_kernel(const __grid_constant__ ProductArgs p) {
  if (threadIdx.x >= kProductThreads) return;
  extern __shared__ __align__(128) std::byte shared[];
  using Codes = typename P::Codes;
  constexpr int kTokens = P::kTokens, kTiles = P::kTiles, kBlocks = P::kBlocks,
                kTogether = P::kTogether;
  // Attention, which is next behind a rotation, reads older keys and the tables before it waits:
  // all that made them is over when this kernel's wait is.
  if (p.finish != Finish::rope_append) start_next();
  const int warp = warp_of_thread(), lane = lane_of_thread(), g = lane / 4, t = lane % 4;
  const int k = p.weight.k, most_rows = min(p.live.capacity, kTokens * 8);
  const TileRun run(p);
  const int tiles = run.tiles, twice = run.twice;
  const int first_unit = run.first_unit, units_end = run.units_end;
  uint32_t* const begins = reinterpret_cast<uint32_t*>(shared);
  run.list(begins, kTogether, P::kUnitBytes);
  std::byte* const rings = shared + list_bytes(p.most_tiles);
  WeightStream<P> weights(run, begins, rings);
#pragma unroll 1
  for (int i = 0; i < P::kStages - 1; ++i) weights.send(), end_group();

  float* const sums = reinterpret_cast<float*>(rings + kSegments * P::Stages::kRingBytes);
  const int tile_sums = kSegments * most_rows * kTileRows;  // floats
  const uint16_t* const x = static_cast<const uint16_t*>(p.input.x.data);
  wait_for_inputs();
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
          const uint32_t stage = weights.take();
          weights.send(), end_group();
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
      const int n = run.tile(group + tile_here) * kTileRows + in_tile;
      return with_scale_and_bias(p, y * (1.f / Codes::kOne), n);
    };
    const int items = tiles_here >> twice;
    for (int i = static_cast<int>(threadIdx.x); i < rows * items * kTileRows;
         i += kProductThreads) {
      const int in_tile = i % kTileRows, which = i / kTileRows % items, row = i / kTileRows / items;
      const int n = run.tile(group + (which << twice)) * kTileRows + in_tile;
      if (n >= p.weight.n) continue;
      const Place place = place_of(p, row_place(p, first + row), n);
      if (twice)
        put_pair(p, place, total(2 * which, row, in_tile), total(2 * which + 1, row, in_tile));
      else
        put(p, place, total(which, row, in_tile));
    }
  }
}

}  // namespace stepladder::cuda
