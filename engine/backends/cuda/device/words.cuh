// What the kernels share: the live rows of a block, rows of a tensor, and reductions in one order.
#pragma once

#include <cuda_runtime.h>

#include "backends/tables.h"
#include "core/tensor.h"

namespace stepladder::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

/// The block's first row in the round.
__device__ inline int first_row(const Live& live) { return live.first ? *live.first : 0; }
/// Rows of the block that are live now.
__device__ inline int live_rows(const Live& live) {
  const int n = *live.total - first_row(live);
  return n < 0 ? 0 : n > live.capacity ? live.capacity : n;
}

/// Before anything is read that an earlier kernel has written: a kernel may begin while the one
/// before it ends.
__device__ inline void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
/// Lets the next kernel begin what needs none of this one's results.
__device__ inline void start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// What a kernel begins with that reads nothing but results.
__device__ inline void begin() {
  start_next();
  wait_for_inputs();
}

template <class T>
__device__ inline T* row_of(const Tensor& t, int64_t row) {
  return static_cast<T*>(t.data) + row * t.cols;
}

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }

/// The sum over a warp, in every lane.
template <class T>
__device__ inline T warp_sum(T x) {
  for (int by = kWarp / 2; by > 0; by /= 2) x = x + __shfl_xor_sync(kAllLanes, x, by);
  return x;
}
template <class T>
__device__ inline T warp_most(T x) {
  for (int by = kWarp / 2; by > 0; by /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, x, by);
    x = other > x ? other : x;
  }
  return x;
}

/// The sum over a thread block, in every thread: warps, then their sums by index. All threads of
/// its first `warps` warps call, where the others have left.
template <class T>
__device__ inline T block_sum(T x, int warps = static_cast<int>(blockDim.x) / kWarp) {
  __shared__ T each[kWarp];
  x = warp_sum(x);
  __syncthreads();
  if (lane_of_thread() == 0) each[warp_of_thread()] = x;
  __syncthreads();
  T sum = each[0];
  for (int i = 1; i < warps; ++i) sum = sum + each[i];
  return sum;
}
/// The largest over a thread block, in every thread. All threads call.
template <class T>
__device__ inline T block_most(T x) {
  __shared__ T each[kWarp];
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  x = warp_most(x);
  __syncthreads();
  if (lane_of_thread() == 0) each[warp_of_thread()] = x;
  __syncthreads();
  T most = each[0];
  for (int i = 1; i < warps; ++i) most = each[i] > most ? each[i] : most;
  return most;
}

/// 1 / sqrt(x), and NaN for a sum that overflowed: 0 in its place would pass for a row of zeros.
__device__ inline float inverse_root(float x) {
  return x < __builtin_inff() ? 1.f / sqrtf(x) : __builtin_nanf("");
}

__device__ inline float silu(float x) { return x / (1.f + expf(-x)); }

}  // namespace stepladder::cuda
