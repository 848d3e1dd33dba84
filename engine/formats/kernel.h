// What a fast path is, without anything a file compiled per instruction set must not instantiate.
#pragma once

#include <cstddef>

#include "backends/backend.h"
#include "core/format.h"

namespace stepladder {

struct WeightRows;

/// A way to lay a weight out; kernels that name the same one share a packed copy. A format.cpp
/// defines it in the namespace `packing`, for the format's kernels.
struct Packing {
  bool (*supports)(const FormatDesc&, int n, int k);  // never asks how many rows
  size_t (*bytes)(const FormatDesc&, int n, int k);
  /// Packs some rows of a weight; `out` is host memory for all of it, zeroed before the first.
  /// Writes what belongs to these rows alone, so that threads may pack rows of one weight at once.
  void (*pack)(const WeightRows&, std::byte* out);
};

/// Part of a packed copy.
struct ByteRange {
  size_t first, bytes;
};

/// A fast path: one (format, activation mode, kernel family).
struct LinearKernel {
  const char* format;
  ActMode mode;
  const char* family;  // Backend::kernels() it is for
  const Packing* packing;
  const FastKernel* run;
  /// The part of the copy that it is given and reads, where a smaller weight lies within a larger
  /// one; null: all of it.
  ByteRange (*reads)(const FormatDesc&, int n, int k) = nullptr;
};

/// What a format's cpu.cpp exports as FORMAT_kernels.
struct LinearKernels {
  const LinearKernel* first;
  int count;
  template <int N>
  consteval LinearKernels(const LinearKernel (&kernels)[N]) : first(kernels), count(N) {}
};

}  // namespace stepladder
