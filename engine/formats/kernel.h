// What a fast path is, without anything a file compiled per instruction set must not instantiate.
#pragma once

#include <cstddef>

#include "backends/backend.h"
#include "core/format.h"

namespace stepladder {

struct WeightRows;

/// A fast path: one (format, activation mode, kernel family). Kernels that name the same layout
/// share one packed copy of the bytes.
struct LinearKernel {
  const char* format;
  ActMode mode;
  const char* family;  // Backend::kernels() it is for
  const char* layout;
  bool (*supports)(const FormatDesc&, int n, int k);  // never asks how many rows
  size_t (*packed_bytes)(const FormatDesc&, int n, int k);
  /// Packs some rows of a weight; `out` is host memory for all of it, zeroed before the first.
  /// Writes what belongs to these rows alone, so that threads may pack rows of one weight at once.
  void (*pack)(const WeightRows&, std::byte* out);
  const FastKernel* run;
};

}  // namespace stepladder
