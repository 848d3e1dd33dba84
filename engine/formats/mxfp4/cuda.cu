// Products of 16-bit tokens with E2M1 weights, whose scales are powers of two for every 32.
#include "formats/cuda/fragment_pack.h"
#include "formats/cuda/product_launch.cuh"

namespace stepladder::cuda {
namespace {

template <bool kBf16>
struct Body {
  static void run(const ProductArgs& p, cudaStream_t stream) {
    product_of_rows<NibbleCodes<kBf16, Nibbles::e2m1>, kBf16, 4, DType::e8m0>(p, stream);
  }
};

constexpr CudaKernel kRun{{}, Products<Body>::project};
constexpr LinearKernel kKernels[] = {{"mxfp4", kA16, "cuda", &fragments, &kRun}};

}  // namespace

extern const LinearKernels mxfp4_kernels(kKernels);

}  // namespace stepladder::cuda
