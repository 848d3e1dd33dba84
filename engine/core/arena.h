// Buffer owns backend memory through two functions; Arena hands out pieces of it and takes them
// all back at the end of a scope. An Arena without memory only measures: a dry run of the code
// that uses it gives the bytes to allocate.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

#include "core/error.h"
#include "core/tensor.h"

namespace stepladder {

/// Move-only owner of a block of backend memory.
class Buffer {
 public:
  Buffer() = default;
  Buffer(void* data, size_t bytes, std::function<void(void*, size_t)> release)
      : data_(data), bytes_(bytes), release_(std::move(release)) {}
  Buffer(Buffer&& o) noexcept { *this = std::move(o); }
  Buffer& operator=(Buffer&& o) noexcept {
    reset();
    data_ = std::exchange(o.data_, nullptr), bytes_ = std::exchange(o.bytes_, 0);
    release_ = std::move(o.release_);
    return *this;
  }
  ~Buffer() { reset(); }
  std::byte* data() const { return static_cast<std::byte*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  void reset() noexcept {
    if (data_) release_(data_, bytes_);
    data_ = nullptr;
  }
  void* data_ = nullptr;
  size_t bytes_ = 0;
  std::function<void(void*, size_t)> release_;
};

/// Bump allocator over memory it does not own. Pieces are 64-byte aligned.
class Arena {
 public:
  Arena() = default;  // measures only: pieces are addresses nobody may touch
  Arena(void* memory, size_t bytes) : base_(static_cast<std::byte*>(memory)), bytes_(bytes) {}

  void* take(size_t bytes) {
    const size_t at = used_;
    used_ += (bytes + 63) / 64 * 64;
    peak_ = used_ > peak_ ? used_ : peak_;
    check(!base_ || used_ <= bytes_, Code::internal, "arena: ", used_, " bytes wanted of ", bytes_);
    return base_ ? base_ + at : reinterpret_cast<void*>(at + 64);
  }
  template <class T>
  T* take_array(size_t n) {
    return static_cast<T*>(take(n * sizeof(T)));
  }
  Tensor take_tensor(DType t, int64_t rows, int64_t cols) {
    Tensor out{nullptr, t, rows, cols};
    out.data = take(out.bytes());
    return out;
  }
  bool measuring() const { return !base_; }
  size_t peak() const { return peak_; }

  /// Gives back everything taken since it was made.
  class Scope {
   public:
    explicit Scope(Arena& a) : arena_(a), mark_(a.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t mark_;
  };

 private:
  std::byte* base_ = nullptr;
  size_t bytes_ = 0, used_ = 0, peak_ = 0;
};

}  // namespace stepladder
