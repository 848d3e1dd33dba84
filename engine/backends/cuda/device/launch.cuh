// Launches that let a kernel begin while the one before it ends (programmatic dependent launch),
// where the device can: what does not depend on that one, weights on their way, is there when it is
// needed.
#pragma once

#include <cuda_runtime.h>

#include "backends/cuda/staging.h"

namespace stepladder::cuda {

/// What the current device says of itself.
inline int device_attribute(cudaDeviceAttr what) {
  int device = 0, value = 0;
  must(cudaGetDevice(&device), "the device");
  must(cudaDeviceGetAttribute(&value, what, device), "what the device is");
  return value;
}
/// Its compute capability, times ten.
inline int device_version() {
  return 10 * device_attribute(cudaDevAttrComputeCapabilityMajor) +
         device_attribute(cudaDevAttrComputeCapabilityMinor);
}

/// Queues a kernel, all of whose threads call begin() or wait_for_inputs(), in clusters of so many
/// blocks along x; of more than one only where the device has them.
template <class... Params, class... Args>
void launch_clusters(void (*kernel)(Params...), dim3 grid, unsigned cluster, unsigned threads,
                     size_t shared, cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = 1;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim = {cluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared, config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : device_version() >= 90 ? 1 : 0;
  must(cudaLaunchKernelEx(&config, kernel, args...), "a kernel");
}

/// The same, without clusters.
template <class... Params, class... Args>
void launch_kernel(void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared,
                   cudaStream_t stream, const Args&... args) {
  launch_clusters(kernel, grid, 1, threads, shared, stream, args...);
}

}  // namespace stepladder::cuda
