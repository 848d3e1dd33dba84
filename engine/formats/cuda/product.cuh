// y = x W^T for few rows, on tensor instructions: weights are the instruction's 16 outputs, tokens
// its 8 columns, so one token costs no more weights than eight.
//
// A warp computes one tile of outputs over every S-th unit of k, its slice; the slices of a tile
// lie in one thread block and are added by index. S follows from (n, k) alone, a column's bits do
// not depend on the others, and sums run in the order of k: a row's bits are the same among any
// rows. A warp keeps the weights of its next units, with their scales, on the way while it
// multiplies.
#pragma once

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "formats/cuda/fragments.cuh"

namespace stepladder::cuda {

constexpr int kProductWarps = 8;

/// Slices of k, a power of two, as measured: enough warps to keep the memory busy, the more the
/// more bytes a code takes, and some units for each. Where there are many tiles two of them share a
/// thread block, so that a gate can be computed with its up.
inline int slices_of(const FragmentLayout& l, int code_bits) {
  constexpr int kWanted = 2500, kMany = 1000;  // warps, tiles
  const int most = l.tiles < kMany ? kProductWarps : kProductWarps / 2;
  int slices = 1;
  while (slices < most && l.units >= 4 * slices &&
         (l.tiles * slices < kWanted || slices < code_bits / 2))
    slices *= 2;
  return slices;
}

struct ProductArgs {
  LinearArgs args;
  FragmentLayout layout;
  int slices;
  bool gated;  // the second half of the tiles is multiplied with the silu of the first
  Tensor out;  // [capacity, n / 2] 16-bit, of that
};
inline ProductArgs product_args(const LinearArgs& a) {
  const FragmentLayout layout = fragment_layout(a.weight.desc, a.weight.n, a.weight.k);
  return {a, layout, slices_of(layout, bits(a.weight.desc.code)), false, {}};
}

/// Bytes on their way from global to shared memory, past the L1 cache where 16 are copied at once.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* from) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from));
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes));
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until all groups of copies but the last kLeft are there, for the thread that made them.
template <int kLeft>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

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

/// A scale of a row, of any type.
__device__ inline float row_scale(DType t, const std::byte* scales, int row) {
  if (t == DType::e8m0) return from_e8m0(reinterpret_cast<const uint8_t*>(scales)[row]);
  if (t == DType::f32) return reinterpret_cast<const float*>(scales)[row];
  return from_16(t, reinterpret_cast<const uint16_t*>(scales)[row]);
}

/// How a product is computed. kSpans: scales of a row in a unit, of type kScale; 0 where a row has
/// one or none. kTokens: groups of eight rows. kAhead: units on the way, in a ring of the warp's
/// own in shared memory. kResident: thread blocks that shall fit on a multiprocessor.
template <class Codes_, bool kBf16_, int kSpans_, DType kScale_, int kTokens_, int kAhead_,
          int kResident_>
struct Product {
  using Codes = Codes_;
  static constexpr bool kBf16 = kBf16_;
  static constexpr int kSpans = kSpans_, kTokens = kTokens_, kAhead = kAhead_,
                       kResident = kResident_;
  static constexpr DType kScale = kScale_;
  static constexpr int kHalves = unit_blocks(Codes::kBits) / 2;      // pairs of blocks
  static constexpr int kScaleBytes = kSpans * 2 * bits(kScale) / 8;  // that a lane has of a unit
  static constexpr int kCodeBytes = kHalves * Codes::kVectors * kUnitVectorBytes;
  static constexpr int kSlotBytes = kCodeBytes + kScaleBytes * kWarp;
  static constexpr int kRingBytes = kAhead * kSlotBytes;
  static constexpr int kPartialBytes = kTokens * 8 * kTileRows * int(sizeof(float));
  /// The slices' sums lie where the rings were.
  static constexpr int kSharedBytes =
      kProductWarps * (kRingBytes > kPartialBytes ? kRingBytes : kPartialBytes);
};

template <class P>
__global__ void __launch_bounds__(kProductWarps* kWarp, P::kResident)
    product_kernel(ProductArgs p) {
  extern __shared__ __align__(128) std::byte shared[];
  using Codes = typename P::Codes;
  constexpr int kTokens = P::kTokens, kHalves = P::kHalves, kVectors = Codes::kVectors,
                kUnit = 64 * kHalves;
  const LinearArgs& a = p.args;
  const FragmentLayout& l = p.layout;
  const int warp = warp_of_thread(), lane = lane_of_thread(), g = lane / 4, t = lane % 4;
  const int slice = warp % p.slices, tiles_here = kProductWarps / p.slices;
  const int pairs_here = tiles_here / 2, in_block_tile = warp / p.slices;
  const int tile = !p.gated
                       ? static_cast<int>(blockIdx.x) * tiles_here + in_block_tile
                       : static_cast<int>(blockIdx.x) * pairs_here + in_block_tile % pairs_here +
                             in_block_tile / pairs_here * (l.tiles / 2);
  const int k = a.weight.k, first = static_cast<int>(blockIdx.y) * kTokens * 8;
  const auto* data = static_cast<const std::byte*>(a.weight.data);
  // Units of this warp: slice, slice + S, ...
  const bool there =
      p.gated ? static_cast<int>(blockIdx.x) * pairs_here + in_block_tile % pairs_here < l.tiles / 2
              : tile < l.tiles;
  const int mine = there ? (l.units - slice + p.slices - 1) / p.slices : 0;

  std::byte* const ring = shared + warp * P::kRingBytes;
  const std::byte* from = data + (size_t(tile) * l.units + slice) * P::kCodeBytes + lane * 16;
  const std::byte* scales = data + l.scales + size_t(tile) * l.tile_scales + g * P::kScaleBytes;
  int at = slice, loaded = 0,
      slot = 0;  // the unit that is loaded next, how many were, and where it goes
  // A group of copies a unit, empty behind the last, so that counting groups counts units. A lane
  // copies what it will read itself.
  const auto load = [&] {
    if (loaded < mine) {
      std::byte* const to = ring + slot;
#pragma unroll
      for (int v = 0; v < kHalves * kVectors; ++v)
        copy_async<16>(to + v * kUnitVectorBytes + lane * 16, from + v * kUnitVectorBytes);
      from += p.slices * P::kCodeBytes;
      if constexpr (P::kSpans != 0) {
        const int place = P::kSpans == 1 ? at >> l.group_shift : at;
        copy_async<P::kScaleBytes>(to + P::kCodeBytes + lane * P::kScaleBytes,
                                   scales + place * 8 * P::kScaleBytes);
        at += p.slices;
      }
    }
    ++loaded;
    slot = slot + P::kSlotBytes == P::kRingBytes ? 0 : slot + P::kSlotBytes;
    commit_copies();
  };
#pragma unroll
  for (int i = 0; i < P::kAhead - 1; ++i) load();

  wait_for_inputs();
  const int rows = min(live_rows(a.live) - first, kTokens * 8);
  if (rows <= 0) return;

  // Activations of two blocks in hand and, for few rows, of the next two, by turns. A lane without
  // a row keeps the zeros it begins with; so does what lies past the end of k.
  constexpr bool kEarly = kTokens <= 2 || (kTokens == 4 && P::kSpans == 0);
  const uint16_t* x = row_of<const uint16_t>(a.x, first + g) + slice * kUnit + 8 * t;
  int x_left = k - slice * kUnit;  // k from here to the end
  uint4 xs[kEarly ? 2 : 1][2][kTokens] = {};
  const auto load_x = [&](uint4(&to)[2][kTokens], int half) {
    const bool whole = x_left >= kUnit;
#pragma unroll
    for (int block = 0; block < 2; ++block) {
      const int k0 = half * 64 + block * kBlock;
#pragma unroll
      for (int j = 0; j < kTokens; ++j) {
        if (j * 8 + g >= rows) continue;
        if (whole || k0 < x_left)
          to[block][j] = *reinterpret_cast<const uint4*>(x + int64_t{j} * 8 * k + k0);
        else
          to[block][j] = uint4{};
      }
    }
    if (half == kHalves - 1) x += p.slices * kUnit, x_left -= p.slices * kUnit;
  };
  if (kEarly) load_x(xs[0], 0);
  float sum[kTokens][4] = {}, part[kTokens][4] = {};
  int ready = 0;  // the slot of the unit in hand
  for (int done = 0; done < mine; done += 2 / kHalves) {
    uint32_t words[P::kScaleBytes / 4 + 1];
#pragma unroll
    for (int turn = 0; turn < 2; ++turn) {
      const int half = kHalves == 2 ? turn : 0;
      if (kHalves == 1 && done + turn >= mine) break;
      if constexpr (kEarly)
        load_x(xs[1 - turn], kHalves == 2 ? 1 - half : 0);
      else
        load_x(xs[0], half);
      if (half == 0) wait_for_copies<P::kAhead - 2>();
      const std::byte* const unit = ring + ready;
      uint4 codes[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v)
        codes[v] = *reinterpret_cast<const uint4*>(unit + (half * kVectors + v) * kUnitVectorBytes +
                                                   lane * 16);
      if (half == 0) {
#pragma unroll
        for (int i = 0; i < P::kScaleBytes / 4; ++i)
          words[i] = *reinterpret_cast<const uint32_t*>(unit + P::kCodeBytes +
                                                        lane * P::kScaleBytes + 4 * i);
      }
      if (half == kHalves - 1) {
        ready = ready + P::kSlotBytes == P::kRingBytes ? 0 : ready + P::kSlotBytes;
        load();
      }
#pragma unroll
      for (int block = 0; block < 2; ++block) {
        const Fragment low = Codes::fragment(codes, block, 0),
                       high = Codes::fragment(codes, block, 1);
#pragma unroll
        for (int j = 0; j < kTokens; ++j) {
          float (&d)[4] = P::kSpans ? part[j] : sum[j];
          const uint4 b = xs[kEarly ? turn : 0][block][j];
          multiply<P::kBf16>(d, low, b.x, b.y);
          multiply<P::kBf16>(d, high, b.z, b.w);
        }
        if constexpr (P::kSpans != 0) {
          constexpr int kSpanBlocks = 2 * kHalves / (P::kSpans ? P::kSpans : 1);
          const int in_unit = half * 2 + block;
          if (in_unit % kSpanBlocks != kSpanBlocks - 1) continue;
          const int span = in_unit / kSpanBlocks;
          const ScalePair s = bits(P::kScale) == 16
                                  ? scale_pair<P::kScale>(words[span])
                                  : scale_pair<P::kScale>(words[span / 2] >> (16 * (span % 2)));
#pragma unroll
          for (int j = 0; j < kTokens; ++j) {
            sum[j][0] = fmaf(part[j][0], s.low, sum[j][0]),
            sum[j][1] = fmaf(part[j][1], s.low, sum[j][1]);
            sum[j][2] = fmaf(part[j][2], s.high, sum[j][2]),
            sum[j][3] = fmaf(part[j][3], s.high, sum[j][3]);
            part[j][0] = part[j][1] = part[j][2] = part[j][3] = 0.f;
          }
        }
      }
    }
  }
  start_next();

  float* const partial = reinterpret_cast<float*>(shared);  // [warp][token][row]
  wait_for_copies<0>();
  __syncthreads();
  float* own = partial + warp * kTokens * 8 * kTileRows;
#pragma unroll
  for (int j = 0; j < kTokens; ++j) {
    const int token = j * 8 + 2 * t;
    own[token * kTileRows + g] = sum[j][0], own[(token + 1) * kTileRows + g] = sum[j][1];
    own[token * kTileRows + g + 8] = sum[j][2], own[(token + 1) * kTileRows + g + 8] = sum[j][3];
  }
  __syncthreads();
  // The sum of a row of one of the block's tiles, with its scale and bias.
  const auto total = [&](int of_tile, int in_tile, int row, int n) {
    const float* from_slice =
        partial + (of_tile * p.slices * kTokens * 8 + row) * kTileRows + in_tile;
    float y = from_slice[0];
    for (int s = 1; s < p.slices; ++s) y = y + from_slice[s * kTokens * 8 * kTileRows];
    if (P::kSpans == 0 && l.scale_bytes) y = y * row_scale(a.weight.desc.scale, data + l.scales, n);
    return a.weight.bias ? y + a.weight.bias[n] : y;
  };
  if (p.gated) {
    const int columns = pairs_here * kTileRows, half = a.weight.n / 2;
    for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += kProductWarps * kWarp) {
      const int row = i / columns, column = i % columns,
                n = static_cast<int>(blockIdx.x) * columns + column;
      if (n >= half) continue;
      const float gate = total(column / kTileRows, column % kTileRows, row, n);
      const float up = total(pairs_here + column / kTileRows, column % kTileRows, row, half + n);
      row_of<uint16_t>(p.out, first + row)[n] = to_16(p.out.dtype, silu(gate) * up);
    }
    return;
  }
  const int n0 = static_cast<int>(blockIdx.x) * tiles_here * kTileRows;
  for (int i = static_cast<int>(threadIdx.x); i < rows * tiles_here * kTileRows;
       i += kProductWarps * kWarp) {
    const int row = i / (tiles_here * kTileRows), in_block = i % (tiles_here * kTileRows),
              n = n0 + in_block;
    if (n >= a.weight.n) continue;
    const float y = total(in_block / kTileRows, in_block % kTileRows, row, n);
    float* out =
        row_of<float>(a.y, a.accumulate ? first_row(a.live) + first + row : first + row) + n;
    *out = a.accumulate ? *out + y : y;
  }
}

template <class P>
void launch_product(const ProductArgs& p, cudaStream_t stream) {
  must(cudaFuncSetAttribute(product_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                            P::kSharedBytes),
       "shared memory");
  const int tiles_here = kProductWarps / p.slices;  // with their partners where there are pairs
  const dim3 grid((p.layout.tiles + tiles_here - 1) / tiles_here,
                  (p.args.live.capacity + P::kTokens * 8 - 1) / (P::kTokens * 8));
  launch_kernel(product_kernel<P>, grid, kProductWarps * kWarp, P::kSharedBytes, stream, p);
}

template <class Codes, bool kBf16, int kSpans, DType kScale>
void product_of_rows(const ProductArgs& p, cudaStream_t stream) {
  constexpr int kAhead = 3;
  const int rows = p.args.live.capacity;
  if (rows <= 8)
    return launch_product<Product<Codes, kBf16, kSpans, kScale, 1, kAhead,
                                  (Codes::kBits == 16 || kSpans > 1) ? 3 : 4>>(p, stream);
  if (rows <= 16)
    return launch_product<Product<Codes, kBf16, kSpans, kScale, 2, kAhead, 2>>(p, stream);
  if (rows <= 32)
    return launch_product<Product<Codes, kBf16, kSpans, kScale, 4, kAhead, 2>>(p, stream);
  launch_product<Product<Codes, kBf16, kSpans, kScale, 8, kAhead, 1>>(p, stream);
}

template <class Codes, bool kBf16, DType kScale>
void product_of_groups(const ProductArgs& p, cudaStream_t stream) {
  switch (p.layout.spans) {
    case 1:
      return product_of_rows<Codes, kBf16, 1, kScale>(p, stream);
    case 2:
      return product_of_rows<Codes, kBf16, 2, kScale>(p, stream);
    default:
      return product_of_rows<Codes, kBf16, 4, kScale>(p, stream);
  }
}

/// With 16-bit scales in groups, or any one a row.
template <class Codes, bool kBf16>
void product_in_groups(const ProductArgs& p, cudaStream_t stream) {
  if (p.layout.spans == 0) return product_of_rows<Codes, kBf16, 0, DType::f32>(p, stream);
  p.args.weight.desc.scale == DType::bf16 ? product_of_groups<Codes, kBf16, DType::bf16>(p, stream)
                                          : product_of_groups<Codes, kBf16, DType::f16>(p, stream);
}

/// The functions of a CudaKernel. Body<kBf16>::run is a format's product with tokens of bf16, or
/// f16.
template <template <bool kBf16> class Body>
struct Products {
  static void queue(const ProductArgs& p, cudaStream_t stream) {
    p.args.x.dtype == DType::bf16 ? Body<true>::run(p, stream) : Body<false>::run(p, stream);
  }
  static void run(const LinearArgs& a, cudaStream_t stream) { queue(product_args(a), stream); }
  static bool gated(const LinearArgs& a, const Tensor& out, cudaStream_t stream) {
    ProductArgs p = product_args(a);
    if (p.slices == kProductWarps || a.weight.n % (2 * kTileRows) != 0) return false;
    p.gated = true, p.out = out;
    queue(p, stream);
    return true;
  }
};

}  // namespace stepladder::cuda
