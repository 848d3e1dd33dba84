#include "bench/device_read.h"

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/words.cuh"

namespace bench {
namespace {

using namespace stepladder;
using namespace stepladder::cuda;

constexpr int kThreads = 512, kAhead = 4;

__global__ void __launch_bounds__(kThreads)
    read_kernel(const uint4* from, int64_t count, float* out) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  uint32_t all = 0;
  int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  uint4 v[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i)
    v[i] = at + i * stride < count ? __ldcs(from + at + i * stride) : uint4{};
  start_next();
  for (; at < count; at += kAhead * stride) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      all ^= v[i].x ^ v[i].y ^ v[i].z ^ v[i].w;
      const int64_t next = at + (kAhead + i) * stride;
      v[i] = next < count ? __ldcs(from + next) : uint4{};
    }
  }
  wait_for_inputs();
  if (all == 0x9e3779b9u) *out = 1.f;  // keeps the loads
}

void project(const ProjectArgs& a, cudaStream_t stream) {
  const PackedWeight& w = a.weight.packed;
  launch_kernel(read_kernel, 132 * 4, kThreads, 0, stream, static_cast<const uint4*>(w.data),
                static_cast<int64_t>(w.bytes / sizeof(uint4)),
                static_cast<float*>(std::get<Store>(a.result).y.data));
}

}  // namespace

extern const CudaKernel kReadWeight{{}, project};

}  // namespace bench
