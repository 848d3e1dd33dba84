#include "backends/cuda/staging.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "core/round_up.h"

namespace stepladder::cuda {

void must(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  // What is no lasting fault of the device would otherwise be reported by the next call too.
  cudaGetLastError();
  fail(status == cudaErrorMemoryAllocation ? Code::out_of_memory : Code::device, "cuda: ", what,
       ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

Pinned::Pinned(size_t bytes) {
  void* memory = nullptr;
  must(cudaHostAlloc(&memory, bytes, cudaHostAllocDefault), "pinned host memory");
  data_ = static_cast<std::byte*>(memory);
}
Pinned::~Pinned() { cudaFreeHost(data_); }

Uploads::Uploads(cudaStream_t stream) : stream_(stream), ring_(2 * kHalf) {
  for (cudaEvent_t& event : left_)
    must(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "an event");
}
Uploads::~Uploads() {
  for (cudaEvent_t event : left_) cudaEventDestroy(event);
}

void Uploads::push(void* to, const void* host_from, size_t bytes) {
  auto* out = static_cast<std::byte*>(to);
  const auto* from = static_cast<const std::byte*>(host_from);
  while (bytes > 0) {
    if (used_ == kHalf) {
      must(cudaEventRecord(left_[half_], stream_), "an upload");
      half_ = 1 - half_, used_ = 0;
      must(cudaEventSynchronize(left_[half_]), "an upload");
    }
    const size_t some = std::min(bytes, kHalf - used_);
    std::byte* const at = ring_.data() + half_ * kHalf + used_;
    std::memcpy(at, from, some);
    must(cudaMemcpyAsync(out, at, some, cudaMemcpyHostToDevice, stream_), "an upload");
    used_ = std::min(kHalf, round_up(used_ + some, size_t{64}));
    out += some, from += some, bytes -= some;
  }
}

Reads::Reads(cudaStream_t stream) : stream_(stream), memory_(kBytes) { pieces_.reserve(kCount); }

void Reads::push(void* host_to, const void* from, size_t bytes) {
  if (bytes > kBytes - used_ || pieces_.size() == kCount) {
    must(cudaMemcpyAsync(host_to, from, bytes, cudaMemcpyDeviceToHost, stream_), "a read");
    must(cudaStreamSynchronize(stream_), "a read");
    return;
  }
  std::byte* const at = memory_.data() + used_;
  must(cudaMemcpyAsync(at, from, bytes, cudaMemcpyDeviceToHost, stream_), "a read");
  pieces_.push_back({host_to, at, bytes});
  used_ = std::min(kBytes, round_up(used_ + bytes, size_t{64}));
}

void Reads::arrived() {
  for (const Piece& piece : pieces_) std::memcpy(piece.to, piece.from, piece.bytes);
  pieces_.clear();
  used_ = 0;
}

}  // namespace stepladder::cuda
