// A view of rows in backend memory: it never owns, and the host may not be able to read it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace stepladder {

/// Row-major matrix view; consecutive rows are `cols` elements apart.
struct Tensor {
  void* data = nullptr;
  DType dtype = DType::f32;
  int64_t rows = 0, cols = 0;

  size_t bytes() const { return static_cast<size_t>(rows * cols) * bits(dtype) / 8; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  /// The view of rows [first, first + count).
  Tensor slice(int64_t first, int64_t count) const {
    return {static_cast<std::byte*>(data) + first * cols * (bits(dtype) / 8), dtype, count, cols};
  }
};

}  // namespace stepladder
