// Products of 16-bit tokens with int4 weights in groups.
#include "formats/cuda/fragment_pack.h"
#include "formats/cuda/product_launch.cuh"

namespace stepladder::cuda {
namespace {

template <bool kBf16>
struct Body {
  static void run(const ProductArgs& p, cudaStream_t stream) {
    product_in_groups<NibbleCodes<kBf16, Nibbles::signed8>, kBf16>(p, stream);
  }
};

constexpr CudaKernel kRun{{}, Products<Body>::project};
constexpr LinearKernel kKernels[] = {{"w4a16", kA16, "cuda", &fragments, &kRun}};

}  // namespace

extern const LinearKernels w4a16_kernels(kKernels);

}  // namespace stepladder::cuda
