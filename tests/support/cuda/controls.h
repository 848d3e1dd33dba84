// CUDA backends that break one rule of exactness each, as support/controls.h has them of the CPU;
// and one that counts what crosses the bus.
#pragma once

#include <cstddef>
#include <variant>

#include "backends/cuda/cuda_backend.h"
#include "core/round_up.h"
#include "support/cuda/kernels.h"

namespace stepladder {

/// Attention by a plain tree mask.
class MaskedSlotsCuda final : public CudaBackend {
 public:
  using CudaBackend::CudaBackend;
  void attention(const AttentionArgs& a) override {
    begin_work();
    cuda::control::masked_slots(a, stream());
  }
};

/// Products whose K is summed in two halves where a recording is of more than four rows.
class SplitByRowsCuda final : public CudaBackend {
 public:
  using CudaBackend::CudaBackend;
  /// No format has kernels for it: a projection is a chain of steps, of which linear() is one.
  std::string kernels() const override { return "cuda/described"; }
  size_t workspace_bytes(const ProjectArgs& a) const override {
    return own_bytes(a) + size_t(a.live.capacity) * a.weight.packed.k * sizeof(uint16_t);
  }
  size_t workspace_bytes(const AttentionArgs& a) const override {
    return CudaBackend::workspace_bytes(a);
  }
  void project(const ProjectArgs& a) override {
    half_ = reinterpret_cast<uint16_t*>(static_cast<std::byte*>(a.workspace) + own_bytes(a));
    CudaBackend::project(a);
  }

 private:
  size_t own_bytes(const ProjectArgs& a) const {
    return round_up(CudaBackend::workspace_bytes(a), size_t{64});
  }
  void linear(const LinearArgs& a) override {
    if (a.live.capacity <= 4 || a.act != Act::a16) return CudaBackend::linear(a);
    LinearArgs half = a;
    half.x.data = half_, half.x.rows = a.live.capacity;
    for (const bool second : {false, true}) {
      begin_work();
      cuda::control::half_of_k({a.x.data, a.x.dtype, a.live.capacity, a.x.cols}, second, half_,
                               stream());
      half.accumulate = a.accumulate || second;
      CudaBackend::linear(half);
      half.weight.bias = nullptr;
    }
  }
  uint16_t* half_ = nullptr;
};

/// Roots whose entries are left as they are: their own go to the last scratch slot.
class StaleRootCuda final : public CudaBackend {
 public:
  using CudaBackend::CudaBackend;
  void project(const ProjectArgs& a) override {
    const auto* to = std::get_if<RopeAppend>(&a.result);
    if (!to) return CudaBackend::project(a);
    const int last = to->kv.spec.scratch - 1;
    begin_work();
    cuda::control::send_nodes(a.live, to->rows, 0, last, stream());
    CudaBackend::project(a);
    cuda::control::send_nodes(a.live, to->rows, last, 0, stream());
  }
};

/// What was asked of it since the last reset.
class CountedCuda final : public CudaBackend {
 public:
  using CudaBackend::CudaBackend;
  struct Counts {
    int64_t uploads = 0, upload_bytes = 0, reads = 0, read_bytes = 0, waits = 0;
    int64_t recordings = 0, allocations = 0;
  } counts;
  void* allocate(size_t bytes) override {
    ++counts.allocations;
    return CudaBackend::allocate(bytes);
  }
  void upload(void* to, const void* host_from, size_t bytes) override {
    ++counts.uploads, counts.upload_bytes += static_cast<int64_t>(bytes);
    CudaBackend::upload(to, host_from, bytes);
  }
  void read(void* host_to, const void* from, size_t bytes) override {
    ++counts.reads, counts.read_bytes += static_cast<int64_t>(bytes);
    CudaBackend::read(host_to, from, bytes);
  }
  void wait() override {
    ++counts.waits;
    CudaBackend::wait();
  }
  std::unique_ptr<Recording> record(const std::function<void()>& body) override {
    ++counts.recordings;
    return CudaBackend::record(body);
  }
};

}  // namespace stepladder
