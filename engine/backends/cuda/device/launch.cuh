// Launches that let a kernel begin while the one before it ends (programmatic dependent launch),
// where the device can: what does not depend on that one, weights on their way, is there when it is
// needed.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

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

// ---- a block a multiprocessor, beside one of the kernel before it ----------------------------
//
// Kernels of a chain whose blocks fill the device once begin while the one before still runs, a
// block of each on a multiprocessor. Two blocks of one kernel must not get into one that has room
// for both just then: the work of both would take twice as long, and all would wait for it. So a
// kernel takes more than half of the shared memory and less than half of the registers, or, by
// warps that leave at once, the other way round; and those that follow each other take different
// sides, where that can be.

enum class Side { shared, registers };

constexpr unsigned kThreadsBeside = 256;  // that do something
/// Registers of a thread, so that two warps in each quarter of a multiprocessor leave room for the
/// three of the other side.
constexpr int kRegistersBeside = 96;
constexpr int kReservedShared = 1024;  // bytes of each block, by CUDA

/// Bytes of shared memory that a kernel on the side of registers may have, of all that a
/// multiprocessor has.
inline int shared_beside(int all) { return all / 2 - 512 - 2 * kReservedShared; }

/// Queues a kernel of a chain, which needs so much shared memory. Threads from kThreadsBeside on
/// leave at once.
template <class Args>
void launch_beside(void (*kernel)(Args), Side side, dim3 grid, int shared, cudaStream_t stream,
                   const Args& args) {
  const int all = device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  const int most = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  if (side == Side::shared)
    shared = std::max(shared, std::min(all / 2 + 512 - kReservedShared, most));
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
       "shared memory");
  // What one block needs would leave no shared memory for another.
  must(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                            cudaSharedmemCarveoutMaxShared),
       "the share of shared memory");
  unsigned threads = kThreadsBeside;
  if (side == Side::registers) {
    cudaFuncAttributes attributes{};
    must(cudaFuncGetAttributes(&attributes, kernel), "a kernel's registers");
    constexpr int kOfQuarter = 65536 / 4;
    const int of_warp = (attributes.numRegs + 7) / 8 * 8 * 32;
    threads = std::max(threads, 4 * 32 * (kOfQuarter / 2 / of_warp + 1u));
  }
  launch_kernel(kernel, grid, threads, shared, stream, args);
}

}  // namespace stepladder::cuda
