// Rows of a weight on their way from a file to a kernel's layout: as bytes that files hold them in,
// a few at a time, through memory that is used again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "core/format.h"

namespace stepladder {

/// Rows [first, first + count) of a weight [n, k], as views.
struct WeightRows {
  FormatDesc desc{};
  int n = 0, k = 0;
  int first = 0, count = 0;
  /// One code of bits(desc.code) after the other, 4-bit ones with the low nibble first: bf16, f16,
  /// i8, i4 as value + 8, u4, e2m1.
  const std::byte* codes = nullptr;
  /// How the codes lie: [count][k]; or, 4-bit ones only, in 32-bit words of 8 along k, as
  /// [k / 8][count].
  bool words_across = false;
  const float* scales = nullptr;    // [count, groups]
  const float* offsets = nullptr;   // [count, groups], with desc.offset
  const float* channels = nullptr;  // [count], with desc.two_level
};

/// A block that grows, is used again and is never cleared.
class Scratch {
 public:
  template <class T>
  T* take(size_t n) {
    if (n * sizeof(T) > bytes_) {
      block_.reset();  // what it held is not kept
      block_ = std::make_unique_for_overwrite<std::byte[]>(bytes_ = n * sizeof(T));
    }
    return reinterpret_cast<T*>(block_.get());
  }

 private:
  std::unique_ptr<std::byte[]> block_;
  size_t bytes_ = 0;
};

/// What one thread reads into and casts in.
struct RowMemory {
  Scratch stored, stored_scales, values, codes, scales;  // of readers
  Scratch cast_values, cast_codes;                       // of casts
};

/// Reads one weight of a checkpoint, whose types and shapes were checked when it was opened.
class WeightReader {
 public:
  WeightReader(FormatDesc desc, int n, int k) : desc_(desc), n_(n), k_(k) {}
  virtual ~WeightReader() = default;
  const FormatDesc& desc() const { return desc_; }
  int n() const { return n_; }
  int k() const { return k_; }
  /// Rows that should be read at once at least; where a file has them side by side, a few of them
  /// are spread all over it.
  virtual int least_rows() const { return 1; }
  /// The views are of `memory` and hold until it is used again. Throws Error(io), and
  /// Error(model_format) on values that no weight may have, naming the file and the tensor. Any
  /// number of threads may read, each with its own memory. `first` is a multiple of 8.
  virtual WeightRows read(int first, int count, RowMemory& memory) const = 0;

 private:
  FormatDesc desc_;
  int n_, k_;
};

}  // namespace stepladder
