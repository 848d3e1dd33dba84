// Which of the product's kernels runs for a format's scales and a number of rows.
#pragma once

#include "formats/cuda/product.cuh"
#include "formats/cuda/projection.h"

namespace stepladder::cuda {

/// What of the current device shapes a launch.
struct DeviceShape {
  int multiprocessors, shared, shared_of_block;  // bytes of one multiprocessor, and of a block

  static DeviceShape current() {
    return {device_attribute(cudaDevAttrMultiProcessorCount),
            device_attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor),
            device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)};
  }
};

/// Shared memory that a block takes at least, so that it lies beside one of the kernel before it,
/// and not two of it do where that one is small: what adds to the residual, and follows attention
/// or a gate, takes more than half of what there is.
inline int least_shared(const DeviceShape& d, Finish finish) {
  constexpr int kReserved = 1024;  // of each block, by CUDA
  return finish == Finish::add ? std::min(d.shared / 2 + 512 - kReserved, d.shared_of_block) : 0;
}

template <class P>
void launch_product(ProductArgs p, cudaStream_t stream) {
  const DeviceShape device = DeviceShape::current();
  const dim3 grid(std::min(items_of(p), device.multiprocessors),
                  (p.live.capacity + P::kTokens * 8 - 1) / (P::kTokens * 8));
  const int rows = std::min(p.live.capacity, P::kTokens * 8);
  const int most_items = (items_of(p) + static_cast<int>(grid.x) - 1) / static_cast<int>(grid.x);
  p.most_tiles = round_up(most_items * (paired(p.finish) ? 2 : 1), P::kTogether);
  const int sums = P::kTiles * kSegments * rows * kTileRows * static_cast<int>(sizeof(float));
  const int shared = std::max(kSegments * P::Stages::kRingBytes + sums +
                                  (p.input.norm ? p.weight.k * 2 : 0) + list_bytes(p.most_tiles),
                              least_shared(device, p.finish));
  must(cudaFuncSetAttribute(product_kernel<P>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
       "shared memory");
  launch_kernel(product_kernel<P>, grid, kProductThreads, shared, stream, p);
}

/// As measured; the more scales a unit has, the fewer tiles and rows there are registers for.
template <class Codes, bool kBf16, int kSpans, DType kScale>
void product_of_rows(const ProductArgs& p, cudaStream_t stream) {
  constexpr bool kFew = kSpans > 2;
  if (p.live.capacity <= 8)
    return launch_product<Product<Codes, kBf16, kSpans, kScale, 1, (kFew ? 2 : 4), 2>>(p, stream);
  if (p.live.capacity <= 16 || kFew)
    return launch_product<Product<Codes, kBf16, kSpans, kScale, 2, (kSpans > 1 ? 4 : 8), 1>>(
        p, stream);
  if constexpr (!kFew) launch_product<Product<Codes, kBf16, kSpans, kScale, 4, 2, 1>>(p, stream);
}

template <class Codes, bool kBf16, DType kScale>
void product_of_groups(const ProductArgs& p, cudaStream_t stream) {
  switch (p.layout.spans) {
    case 1:
      return product_of_rows<Codes, kBf16, 1, kScale>(p, stream);
    case 2:
      return product_of_rows<Codes, kBf16, 2, kScale>(p, stream);
    default:
      return product_of_rows<Codes, kBf16, 4, kScale>(p, stream);
  }
}

/// With 16-bit scales in groups, or any one a row.
template <class Codes, bool kBf16>
void product_in_groups(const ProductArgs& p, cudaStream_t stream) {
  if (p.layout.spans == 0) return product_of_rows<Codes, kBf16, 0, DType::f32>(p, stream);
  p.weight.desc.scale == DType::bf16 ? product_of_groups<Codes, kBf16, DType::bf16>(p, stream)
                                     : product_of_groups<Codes, kBf16, DType::f16>(p, stream);
}

/// A format's projection. Body<kBf16>::run is its product with tokens of bf16, or f16.
template <template <bool kBf16> class Body>
struct Products {
  static void queue(const ProductArgs& p, cudaStream_t stream) {
    p.input.type == DType::bf16 ? Body<true>::run(p, stream) : Body<false>::run(p, stream);
  }
  /// One row is normalized where it is multiplied, by every thread block for itself.
  static bool norms(int rows, int k) { return rows == 1 && k <= 8192; }
  static void project(const ProjectArgs& a, cudaStream_t stream) {
    queue_projection(a, {.product = queue, .norms = norms, .pairs = true}, stream);
  }
};

}  // namespace stepladder::cuda
