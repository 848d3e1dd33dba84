// Reads as fast as a device can: the ceilings that its kernels are measured against.
#pragma once

#include "backends/cuda/kernels.h"

namespace bench {

/// As a product: it reads the weight's bytes once and computes nothing. It begins as products do,
/// with its first loads on the way before the kernel in front of it has ended.
extern const stepladder::cuda::CudaKernel kReadWeight;

}  // namespace bench
