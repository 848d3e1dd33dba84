// Products of 16-bit tokens with weights of 16 bits.
#include "formats/cuda/fragment_pack.h"
#include "formats/cuda/product_launch.cuh"

namespace stepladder::cuda {
namespace {

constexpr int kMixedWarps = 8;

/// Where tokens and weights are of different types, which no tensor instruction takes: a warp an
/// output.
__global__ void mixed_kernel(const __grid_constant__ ProductArgs p) {
  begin();
  const int n = static_cast<int>(blockIdx.x) * kMixedWarps + warp_of_thread(), row = blockIdx.y;
  if (n >= p.weight.n || row >= live_rows(p.live)) return;
  const int k = p.weight.k, g = n % kTileRows % 8, half = n % kTileRows / 8;
  const std::byte* const codes = static_cast<const std::byte*>(p.weight.data) +
                                 size_t(n / kTileRows) * p.layout.units * p.layout.unit_bytes;
  const uint16_t* x = row_of<const uint16_t>(p.input.x, row);
  float sum = 0.f;
  for (int at = lane_of_thread() * 8; at < k; at += kWarp * 8)
    for (int i = 0; i < 8; ++i) {
      const int vector = at / kBlock % 2 * 2 + i / 4, lane = g * 4 + at % kBlock / 8;
      const std::byte* from = codes + size_t(at / (2 * kBlock)) * p.layout.unit_bytes +
                              vector * kUnitVectorBytes + lane * 16;
      const uint16_t code =
          reinterpret_cast<const uint16_t*>(from)[i / 2 % 2 * 4 + half * 2 + i % 2];
      sum = fmaf(from_16(p.weight.desc.code, code), from_16(p.input.type, x[at + i]), sum);
    }
  sum = warp_sum(sum);
  if (lane_of_thread() == 0) put(p, place_of(p, row_place(p, row), n), with_scale_and_bias(p, sum, n));
}

void mixed(const ProductArgs& p, cudaStream_t stream) {
  const dim3 grid((p.weight.n + kMixedWarps - 1) / kMixedWarps, p.live.capacity);
  launch_kernel(mixed_kernel, grid, kMixedWarps * kWarp, 0, stream, p);
}

template <bool kBf16>
struct Body {
  static void run(const ProductArgs& p, cudaStream_t stream) {
    product_of_rows<DenseCodes<kBf16>, kBf16, 0, DType::f32>(p, stream);
  }
};

void project(const ProjectArgs& a, cudaStream_t stream) {
  if (a.input.type == a.weight.packed.desc.code) return Products<Body>::project(a, stream);
  queue_projection(a, {.product = mixed}, stream);
}

constexpr CudaKernel kRun{{}, project};
constexpr LinearKernel kKernels[] = {{"dense", kA16, "cuda", &fragments, &kRun}};

}  // namespace

extern const LinearKernels dense_kernels(kKernels);

}  // namespace stepladder::cuda
