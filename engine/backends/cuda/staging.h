// Copies between the host's pageable memory and the device, by way of pinned memory, so that a call
// neither waits for the device nor keeps the caller's bytes.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <vector>

namespace stepladder::cuda {

/// Throws Error: out_of_memory where that is what failed, else device, saying what was tried.
void must(cudaError_t, const char* what);

class Pinned {
 public:
  explicit Pinned(size_t bytes);
  ~Pinned();
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
};

/// Bytes on their way to the device. They pass through a ring of two halves; a half is used again
/// once what lay in it has arrived.
class Uploads {
 public:
  explicit Uploads(cudaStream_t);
  ~Uploads();
  void push(void* to, const void* host_from, size_t bytes);

 private:
  static constexpr size_t kHalf = size_t{4} << 20;
  cudaStream_t stream_;
  Pinned ring_;
  cudaEvent_t left_[2] = {};  // when the last copy out of a half was queued
  int half_ = 0;
  size_t used_ = 0;  // of the half in hand
};

/// Bytes on their way to the host; they are there once arrived() was called, after the stream was
/// waited for. Large ones are waited for at once.
class Reads {
 public:
  explicit Reads(cudaStream_t);
  void push(void* host_to, const void* from, size_t bytes);
  void arrived();

 private:
  static constexpr size_t kBytes = size_t{256} << 10, kCount = 256;
  struct Piece {
    void* to;
    const std::byte* from;
    size_t bytes;
  };
  cudaStream_t stream_;
  Pinned memory_;
  size_t used_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace stepladder::cuda
