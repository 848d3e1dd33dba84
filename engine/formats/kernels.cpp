// The registry of fast kernels, from the list that CMake writes of those the backends told of.
#include <vector>

#include "formats/linear.h"
#include "generated/formats.h"

namespace stepladder {

#define SL_DECLARE_KERNELS(space, format)      \
  namespace space {                            \
  extern const LinearKernels format##_kernels; \
  }
SL_EACH_FAST_PATH(SL_DECLARE_KERNELS)

std::span<const LinearKernel> linear_kernels() {
  static const std::vector<LinearKernel> all = [] {
    std::vector<LinearKernel> out;
#define SL_ADD_KERNELS(space, format)                  \
  out.insert(out.end(), space::format##_kernels.first, \
             space::format##_kernels.first + space::format##_kernels.count);
    SL_EACH_FAST_PATH(SL_ADD_KERNELS)
    return out;
  }();
  return all;
}

}  // namespace stepladder
