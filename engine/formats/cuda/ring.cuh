// Stages of shared memory through which a warp gets pieces of global memory, in the order in which
// it takes them. A stage holds kPieces pieces of kBytes, which arrive together. Every warp has a
// ring of its own, which its lanes fill: to tell a copy engine what to bring would take one lane
// longer than the warp has.
#pragma once

#include "backends/cuda/device/tensor.cuh"
#include "backends/cuda/device/words.cuh"

namespace stepladder::cuda {

template <int kPieces, int kBytes, int kStages>
class Ring {
 public:
  static constexpr int kStageBytes = kPieces * kBytes, kRingBytes = kStages * kStageBytes;

  /// Over kRingBytes at `data`.
  __device__ explicit Ring(std::byte* data)
      : next_(shared_address(data) + lane_of_thread() * 16),
        oldest_(next_ - lane_of_thread() * 16),
        end_(oldest_ + kRingBytes) {}

  /// Sends for the next stage, into the one that was released last; null: for nothing. The caller
  /// ends the group of copies that it belongs to: a group a stage, of which there are as many before
  /// the first is taken as there are stages but one. All lanes call.
  __device__ void send_for(const std::byte* const (&pieces)[kPieces]) {
    static_assert(kBytes % 16 == 0);
    const int lane = lane_of_thread() * 16;
    if (pieces[0])
#pragma unroll
      for (int i = 0; i < kPieces; ++i)
#pragma unroll
        for (int b = 0; b < kBytes; b += kWarp * 16)
          if (kBytes - b >= kWarp * 16 || lane < kBytes - b)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(next_ + i * kBytes + b),
                         "l"(pieces[i] + lane + b)
                         : "memory");
    next_ = next_ + kStageBytes >= end_ ? next_ + kStageBytes - kRingBytes : next_ + kStageBytes;
  }

  /// Shared address of the oldest stage that was sent for, once it is there; the one taken before
  /// it is released. All lanes call.
  __device__ uint32_t take() {
    wait_for_groups<kStages - 2>();
    __syncwarp();
    const uint32_t at = oldest_;
    oldest_ = at + kStageBytes == end_ ? at + kStageBytes - kRingBytes : at + kStageBytes;
    return at;
  }

 private:
  uint32_t next_, oldest_, end_;
};

}  // namespace stepladder::cuda
