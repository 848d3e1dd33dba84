// Which instruction sets were compiled in, which of them this machine can run, and their kernels.
#pragma once

#include <string>
#include <vector>

#include "backends/cpu/kernels.h"

namespace stepladder {

/// The kernels of one instruction set; "" means the best this machine has. Throws
/// Error(unsupported) naming what there is.
const CpuKernels& kernels_for(const std::string& isa);

}  // namespace stepladder
