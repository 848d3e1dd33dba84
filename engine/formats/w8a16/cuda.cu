// Products of 16-bit tokens with int8 weights, of one scale a row or in groups.
#include "formats/cuda/fragment_pack.h"
#include "formats/cuda/product_launch.cuh"

namespace stepladder::cuda {
namespace {

template <bool kBf16>
struct Body {
  static void run(const ProductArgs& p, cudaStream_t stream) {
    product_in_groups<ByteCodes<kBf16>, kBf16>(p, stream);
  }
};

constexpr CudaKernel kRun{{}, Products<Body>::project};
constexpr LinearKernel kKernels[] = {{"w8a16", kA16, "cuda", &fragments, &kRun}};

}  // namespace

extern const LinearKernels w8a16_kernels(kKernels);

}  // namespace stepladder::cuda
