// The generic linear layer over the layout "described" of core/format.h: it runs any format, and is
// what fast kernels are held against.
//
// A warp an output, for up to kRows rows at once. A lane takes pieces of a few consecutive k, every
// 32nd of them, and adds what a piece gives times its scale to a sum of its own, in the order of k;
// the lanes' sums are added as a tree. Which pieces there are follows from the shape alone, so a
// row's bits do not depend on how many rows there are. Where a row of weights and one of int8
// activations have a scale each, their products are added as integers throughout.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "core/error.h"

namespace stepladder::cuda {
namespace {

constexpr int kWarps = 4;  // outputs a thread block computes
constexpr int kPiece = 8;  // k of a piece, where groups are multiples of it; else 1

struct Product {
  LinearArgs args;
  DType code;
  const uint8_t* codes;
  const float *scales, *offsets;  // null when the format has none
  int64_t row_bytes;
  int groups, group;  // at least one group; k per group
  bool whole;         // integers throughout
};

Product product_of(const LinearArgs& a) {
  const FormatDesc desc = described_as(a.weight.desc);
  const int n = a.weight.n, k = a.weight.k;
  Product p{.args = a, .code = desc.code};
  p.codes = static_cast<const uint8_t*>(a.weight.data);
  p.row_bytes = static_cast<int64_t>(described_row_bytes(desc, k));
  if (desc.scaled)
    p.scales = reinterpret_cast<const float*>(p.codes + described_scales(desc, n, k));
  p.group = desc.scaled && desc.group ? desc.group : k;
  p.groups = k / p.group;
  if (desc.offset) p.offsets = p.scales + int64_t{n} * p.groups;
  p.whole = a.act == Act::a8 && a.x8.group == k && p.group == k && !desc.offset;
  return p;
}

/// How codes are stored: all of 16 bits share a kernel.
enum class Stored { bits16, i8, i4, u4, e2m1 };

/// The value of a 4-bit code, times kTimes; E2M1 goes through the exponent field of a float.
template <Stored kStored, class T, int kTimes>
__device__ T nibble_value(uint32_t code) {
  if constexpr (kStored == Stored::e2m1) {
    const float magnitude = __uint_as_float((code & 7u) << 22) * 0x1p126f;
    return static_cast<T>((code & 8u ? -magnitude : magnitude) * kTimes);
  } else {
    return static_cast<T>(kStored == Stored::u4 ? static_cast<int>(code)
                                                : static_cast<int>(code ^ 8u) - 8);
  }
}

/// kCount elements at `from`, in aligned words.
template <class T, int kCount>
__device__ void take(const T* from, T (&to)[kCount]) {
  __builtin_memcpy(to, __builtin_assume_aligned(from, sizeof to), sizeof to);
}

/// The values of kCount codes of a row from k0 on, times kTimes.
template <Stored kStored, class T, int kTimes, int kCount>
__device__ void decode(DType t, const uint8_t* row, int k0, T (&to)[kCount]) {
  if constexpr (kStored == Stored::bits16) {
    uint16_t x[kCount];
    take(reinterpret_cast<const uint16_t*>(row) + k0, x);
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<T>(from_16(t, x[i]));
  } else if constexpr (kStored == Stored::i8) {
    int8_t x[kCount];
    take(reinterpret_cast<const int8_t*>(row) + k0, x);
    for (int i = 0; i < kCount; ++i) to[i] = static_cast<T>(x[i]);
  } else if constexpr (kCount == 1) {
    to[0] = nibble_value<kStored, T, kTimes>(row[k0 / 2] >> (k0 % 2 * 4) & 15u);
  } else {
    uint32_t word[kCount / 8];
    take(reinterpret_cast<const uint32_t*>(row + k0 / 2), word);
    for (int i = 0; i < kCount; ++i)
      to[i] = nibble_value<kStored, T, kTimes>(word[i / 8] >> (i % 8 * 4) & 15u);
  }
}

template <Stored kStored, bool kInt8, int kCount, int kRows>
__global__ void linear_kernel(Product p) {
  begin();
  const LinearArgs& a = p.args;
  const int n = static_cast<int>(blockIdx.x) * kWarps + warp_of_thread(), k = a.weight.k;
  const int r0 = static_cast<int>(blockIdx.y) * kRows;
  const int rows = min(live_rows(a.live) - r0, kRows);
  if (n >= a.weight.n || rows <= 0) return;
  const uint8_t* codes = p.codes + p.row_bytes * n;
  // E2M1 codes enter integer products doubled, which makes them whole; the factor comes off again
  // with the scale, where a power of two costs no rounding.
  constexpr int kTimes = kInt8 && kStored == Stored::e2m1 ? 2 : 1;
  float sum[kRows] = {};
  int whole[kRows] = {};

  for (int k0 = lane_of_thread() * kCount; k0 < k; k0 += kWarp * kCount) {
    const int64_t g = int64_t{n} * p.groups + k0 / p.group;
    const float scale = p.scales ? p.scales[g] / kTimes : 1.f;
    const float offset = p.offsets ? p.offsets[g] : 0.f;
    if constexpr (kInt8) {
      int w[kCount];
      decode<kStored, int, kTimes>(p.code, codes, k0, w);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        int8_t x[kCount];
        take(a.x8.q + int64_t{r0 + r} * k + k0, x);
        int products = 0, total = 0;
        for (int i = 0; i < kCount; ++i) products += x[i] * w[i], total += x[i];
        whole[r] += products;
        if (p.whole) continue;
        const float x_scale = a.x8.scale[int64_t{r0 + r} * (k / a.x8.group) + k0 / a.x8.group];
        sum[r] = sum[r] + static_cast<float>(products) * x_scale * scale;
        if (p.offsets) sum[r] = sum[r] - static_cast<float>(total) * x_scale * offset;
      }
    } else {
      float w[kCount];
      decode<kStored, float, kTimes>(p.code, codes, k0, w);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        uint16_t x[kCount];
        take(row_of<const uint16_t>(a.x, r0 + r) + k0, x);
        float products = 0.f, total = 0.f;
        for (int i = 0; i < kCount; ++i) {
          const float value = from_16(a.x.dtype, x[i]);
          products = fmaf(value, w[i], products);
          total = total + value;
        }
        sum[r] = fmaf(products, scale, sum[r]);
        if (p.offsets) sum[r] = fmaf(-total, offset, sum[r]);
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) break;
    float total;
    if (kInt8 && p.whole)
      total = static_cast<float>(warp_sum(whole[r])) * a.x8.scale[r0 + r] *
              (p.scales ? p.scales[n] / kTimes : 1.f);
    else
      total = warp_sum(sum[r]);
    if (lane_of_thread() != 0) continue;
    if (a.weight.bias) total = total + a.weight.bias[n];
    // What is added to is the residual, by row of the round.
    float* y = row_of<float>(a.y, a.accumulate ? first_row(a.live) + r0 + r : r0 + r) + n;
    *y = a.accumulate ? *y + total : total;
  }
}

template <Stored kStored, bool kInt8, int kCount, int kRows>
void launch(const Product& p, cudaStream_t stream) {
  const dim3 grid((p.args.weight.n + kWarps - 1) / kWarps,
                  (p.args.live.capacity + kRows - 1) / kRows);
  launch_kernel(linear_kernel<kStored, kInt8, kCount, kRows>, grid, kWarps * kWarp, 0, stream, p);
}

template <Stored kStored, bool kInt8>
void launch_as(const Product& p, cudaStream_t stream) {
  const bool pieces = p.args.weight.k % kPiece == 0 && p.group % kPiece == 0 &&
                      (!kInt8 || p.args.x8.group % kPiece == 0);
  if (!pieces) return launch<kStored, kInt8, 1, 4>(p, stream);
  if (p.args.live.capacity == 1) return launch<kStored, kInt8, kPiece, 1>(p, stream);
  launch<kStored, kInt8, kPiece, 8>(p, stream);
}

}  // namespace

void described_linear(const LinearArgs& a, cudaStream_t stream) {
  const Product p = product_of(a);
  const bool int8 = a.act == Act::a8;
  switch (p.code) {
    case DType::bf16:
    case DType::f16:
      return launch_as<Stored::bits16, false>(p, stream);
    case DType::i8:
      return int8 ? launch_as<Stored::i8, true>(p, stream)
                  : launch_as<Stored::i8, false>(p, stream);
    case DType::i4:
      return int8 ? launch_as<Stored::i4, true>(p, stream)
                  : launch_as<Stored::i4, false>(p, stream);
    case DType::u4:
      return int8 ? launch_as<Stored::u4, true>(p, stream)
                  : launch_as<Stored::u4, false>(p, stream);
    case DType::e2m1:
      return int8 ? launch_as<Stored::e2m1, true>(p, stream)
                  : launch_as<Stored::e2m1, false>(p, stream);
    default:
      fail(Code::internal, "cuda: no codes of type ", name(p.code), " in a weight");
  }
}

}  // namespace stepladder::cuda
