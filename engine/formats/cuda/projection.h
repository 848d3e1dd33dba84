// A projection queued as a product and as few other kernels as that allows.
#pragma once

#include "formats/cuda/product.h"

namespace stepladder::cuda {

/// How a format multiplies, and what the product does besides.
struct ProductKernel {
  void (*product)(const ProductArgs&, cudaStream_t);
  /// Whether it normalizes its input, if it is for so many rows of k; null: never.
  bool (*norms)(int rows, int k) = nullptr;
  /// Whether it finishes pairs of tiles: gates and rotations; else it stores and adds alone.
  bool pairs = false;
};

void queue_projection(const ProjectArgs&, const ProductKernel&, cudaStream_t);

}  // namespace stepladder::cuda
