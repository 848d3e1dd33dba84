// The RMS norm of a row by a thread block, in one order wherever it is computed.
#pragma once

#include "backends/cuda/device/words.cuh"

namespace stepladder::cuda {

constexpr int kNormThreads = 256, kNormValues = 4;  // at once, by each thread

/// x = row() times its inverse root mean square times gain [width], rounded to t. All threads of a
/// block of kNormThreads call. A row is read once: what a thread has of it stays in registers, as
/// far as kNormValues go eight times. row() may wait for x to be there: the gains, which no kernel
/// writes, are read before it.
template <class Row>
__device__ void norm_row(DType t, Row&& row, const float* gain, float eps, int width,
                         uint16_t* out) {
  constexpr int kRounds = 8, kStep = kNormThreads * kNormValues;
  const bool even = width % kNormValues == 0 && width <= kRounds * kStep;
  if (!even) {
    const float* const x = row();
    float squares = 0.f;
    for (int c = threadIdx.x; c < width; c += kNormThreads) squares = fmaf(x[c], x[c], squares);
    const float inverse = inverse_root(block_sum(squares) / static_cast<float>(width) + eps);
    for (int c = threadIdx.x; c < width; c += kNormThreads)
      out[c] = to_16(t, x[c] * inverse * gain[c]);
    return;
  }
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
  each([&](int r, int c) {
    const float4 v = held[r], g = gains[r];
    const uint32_t low = to_16(t, v.x * inverse * g.x) | uint32_t{to_16(t, v.y * inverse * g.y)}
                                                             << 16;
    const uint32_t high = to_16(t, v.z * inverse * g.z) | uint32_t{to_16(t, v.w * inverse * g.w)}
                                                              << 16;
    *reinterpret_cast<uint2*>(out + c) = {low, high};
  });
}

}  // namespace stepladder::cuda
