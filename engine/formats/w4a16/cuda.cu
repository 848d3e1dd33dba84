// Products of 16-bit tokens with int4 weights in groups.
#include "formats/cuda/fragment_pack.h"
#include "formats/cuda/product.cuh"

namespace stepladder::cuda {
namespace {

template <bool kBf16>
void run_as(const ProductArgs& p, cudaStream_t stream) {
  product_in_groups<NibbleCodes<kBf16, Nibbles::signed8>, kBf16>(p, stream);
}

void run_product(const ProductArgs& p, cudaStream_t stream) {
  p.args.x.dtype == DType::bf16 ? run_as<true>(p, stream) : run_as<false>(p, stream);
}

void run(const LinearArgs& a, cudaStream_t stream) { run_product(product_args(a), stream); }

bool gated(const LinearArgs& a, const Tensor& out, cudaStream_t stream) {
  return product_and_gate(a, out, [&](const ProductArgs& p) { run_product(p, stream); });
}

constexpr CudaKernel kRun{{}, run, gated};
constexpr LinearKernel kKernels[] = {{"w4a16", kA16, "cuda", &fragments, &kRun}};

}  // namespace

extern const LinearKernels w4a16_kernels(kKernels);

}  // namespace stepladder::cuda
