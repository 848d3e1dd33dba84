// The RMS norm of a row by a thread block, in one order wherever it is computed.
#pragma once

#include "backends/cuda/device/tensor.cuh"
#include "backends/cuda/device/words.cuh"

namespace stepladder::cuda {

constexpr int kNormThreads = 256, kNormValues = 4;  // at once, by each thread

/// Whether norm_even_row() takes a row of that width.
__host__ __device__ constexpr bool even_row(int width) {
  return width % kNormValues == 0 && width <= 8 * kNormThreads * kNormValues;
}

/// norm_even_row() where kRounds times what all threads hold at once is enough.
template <int kRounds, class Row>
__device__ inline void norm_in_rounds(DType t, Row&& row, const float* gain, float eps, int width,
                                      uint16_t* out) {
  constexpr int kStep = kNormThreads * kNormValues;
  float4 held[kRounds], gains[kRounds];
  const auto each = [&](auto&& what) {
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int c = r * kStep + static_cast<int>(threadIdx.x) * kNormValues;
      if (c < width) what(r, c);
    }
  };
  each([&](int r, int c) { gains[r] = *reinterpret_cast<const float4*>(gain + c); });
  const float* const x = row();
  each([&](int r, int c) { held[r] = *reinterpret_cast<const float4*>(x + c); });
  float squares = 0.f;
  each([&](int r, int) {
    for (const float v : {held[r].x, held[r].y, held[r].z, held[r].w})
      squares = fmaf(v, v, squares);
  });
  const float inverse = inverse_root(block_sum(squares) / static_cast<float>(width) + eps);
  const auto pair = [t](float low, float high) {
    return t == DType::bf16 ? rounded_pair<true>(low, high) : rounded_pair<false>(low, high);
  };
  each([&](int r, int c) {
    const float4 v = held[r], g = gains[r];
    *reinterpret_cast<uint2*>(out + c) = {pair(v.x * inverse * g.x, v.y * inverse * g.y),
                                          pair(v.z * inverse * g.z, v.w * inverse * g.w)};
  });
}

/// x = row() times its inverse root mean square times gain [width], rounded to t. All threads of a
/// block of kNormThreads call. A row is read once: what a thread has of it stays in registers. row()
/// may wait for x to be there: the gains, which no kernel writes, are read before it.
template <class Row>
__device__ inline void norm_even_row(DType t, Row&& row, const float* gain, float eps, int width,
                                     uint16_t* out) {
  if (width <= 4 * kNormThreads * kNormValues)
    norm_in_rounds<4>(t, row, gain, eps, width, out);
  else
    norm_in_rounds<8>(t, row, gain, eps, width, out);
}

/// The same of a row of any width.
template <class Row>
__device__ void norm_row(DType t, Row&& row, const float* gain, float eps, int width,
                         uint16_t* out) {
  if (even_row(width)) return norm_even_row(t, row, gain, eps, width, out);
  const float* const x = row();
  float squares = 0.f;
  for (int c = threadIdx.x; c < width; c += kNormThreads) squares = fmaf(x[c], x[c], squares);
  const float inverse = inverse_root(block_sum(squares) / static_cast<float>(width) + eps);
  for (int c = threadIdx.x; c < width; c += kNormThreads)
    out[c] = to_16(t, x[c] * inverse * gain[c]);
}

}  // namespace stepladder::cuda
