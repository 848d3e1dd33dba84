// Products of 16-bit tokens with weights of 16 bits.
#include "formats/cuda/fragment_pack.h"
#include "formats/cuda/product.cuh"

namespace stepladder::cuda {
namespace {

/// Where tokens and weights are of different types, which no tensor instruction takes: a warp an
/// output.
__global__ void mixed_kernel(ProductArgs p) {
  begin();
  const LinearArgs& a = p.args;
  const int n = static_cast<int>(blockIdx.x) * kProductWarps + warp_of_thread(), row = blockIdx.y;
  if (n >= a.weight.n || row >= live_rows(a.live)) return;
  const int k = a.weight.k, g = n % kTileRows % 8, half = n % kTileRows / 8;
  const std::byte* const codes = static_cast<const std::byte*>(a.weight.data) +
                                 size_t(n / kTileRows) * p.layout.units * p.layout.unit_bytes;
  const uint16_t* x = row_of<const uint16_t>(a.x, row);
  float sum = 0.f;
  for (int at = lane_of_thread() * 8; at < k; at += kWarp * 8)
    for (int i = 0; i < 8; ++i) {
      const int vector = at / kBlock % 2 * 2 + i / 4, lane = g * 4 + at % kBlock / 8;
      const std::byte* from = codes + size_t(at / (2 * kBlock)) * p.layout.unit_bytes +
                              vector * kUnitVectorBytes + lane * 16;
      const uint16_t code =
          reinterpret_cast<const uint16_t*>(from)[i / 2 % 2 * 4 + half * 2 + i % 2];
      sum = fmaf(from_16(a.weight.desc.code, code), from_16(a.x.dtype, x[at + i]), sum);
    }
  sum = warp_sum(sum);
  if (lane_of_thread() != 0) return;
  if (a.weight.bias) sum = sum + a.weight.bias[n];
  float* y = row_of<float>(a.y, a.accumulate ? first_row(a.live) + row : row) + n;
  *y = a.accumulate ? *y + sum : sum;
}

template <bool kBf16>
struct Body {
  static void run(const ProductArgs& p, cudaStream_t stream) {
    product_of_rows<DenseCodes<kBf16>, kBf16, 0, DType::f32>(p, stream);
  }
};

void run(const LinearArgs& a, cudaStream_t stream) {
  if (a.x.dtype == a.weight.desc.code) return Products<Body>::run(a, stream);
  const dim3 grid((a.weight.n + kProductWarps - 1) / kProductWarps, a.live.capacity);
  launch_kernel(mixed_kernel, grid, kProductWarps * kWarp, 0, stream, product_args(a));
}

bool gated(const LinearArgs& a, const Tensor& out, cudaStream_t stream) {
  return a.x.dtype == a.weight.desc.code && Products<Body>::gated(a, out, stream);
}

constexpr CudaKernel kRun{{}, run, gated};
constexpr LinearKernel kKernels[] = {{"dense", kA16, "cuda", &fragments, &kRun}};

}  // namespace

extern const LinearKernels dense_kernels(kKernels);

}  // namespace stepladder::cuda
