// The CUDA backend: plain device memory, one stream, and graphs for recordings. Operators are
// kernels of our own; no library chooses among kernels, since its choice would be seen in the bits.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>
#include <vector>

#include "backends/backend.h"
#include "backends/composed.h"
#include "backends/cuda/staging.h"

namespace stepladder {

class CudaBackend : public Backend, protected ProjectSteps {
 public:
  /// Device `index`, which there is.
  explicit CudaBackend(int index);
  ~CudaBackend() override;

  std::string name() const override;  // "cuda/sm_90"
  std::string kernels() const override { return "cuda"; }

  size_t available_bytes() const override;
  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;
  void upload(void* to, const void* host_from, size_t bytes) override;
  void read(void* host_to, const void* from, size_t bytes) override;
  void wait() override;
  bool runs_at_once() const override { return false; }
  std::optional<double> worked_ms() const override { return worked_ms_; }
  std::optional<double> idle_ms() const override { return idle_ms_; }
  std::unique_ptr<Recording> record(const std::function<void()>& body) override;
  std::vector<int> row_buckets() const override { return {1, 2, 4, 8, 16, 24, 32, 48, 64, 128}; }
  size_t kv_bytes(const KVSpec&) const override;
  void read_entries(uint16_t* host_to, const KVView&, int slot, int first, int count) override;
  void read_features(uint16_t* host_to, const KVView&, int slot, int first, int count) override;

  size_t workspace_bytes(const ProjectArgs&) const override;
  size_t workspace_bytes(const AttentionArgs&) const override;
  void expand(const ExpandArgs&) override;
  void embed(const EmbedArgs&) override;
  void project(const ProjectArgs&) override;
  void attention(const AttentionArgs&) override;
  void feature(const FeatureArgs&) override;
  void advance(const AdvanceArgs&) override;
  void follow(const FollowArgs&) override;
  void choose(const ChooseArgs&) override;
  void logprobs(const LogprobArgs&) override;
  void accept(const AcceptArgs&) override;
  void keep(const KeepArgs&) override;
  void count(const CountArgs&) override;
  void narrow(const NarrowArgs&) override;
  void join(const JoinArgs&) override;
  void top(const TopArgs&) override;
  void grow(const GrowArgs&) override;
  void prune(const PruneArgs&) override;

 protected:
  void rms_norm(const RmsNormArgs&) override;
  void quantize(const QuantizeArgs&) override;
  void linear(const LinearArgs&) override;
  void rope_append(const RopeAppendArgs&) override;
  void gated_act(const GatedActArgs&) override;
  /// What precedes the first piece of work after a wait.
  void begin_work();
  cudaStream_t stream() const { return stream_; }

 private:
  class Graph;
  /// Makes the device current in the calling thread.
  void use() const;
  template <class Args>
  void launch(void (*kernel)(const Args&, cudaStream_t), const Args&);

  int index_;
  cudaDeviceProp properties_{};
  cudaStream_t stream_ = nullptr;
  cudaEvent_t began_ = nullptr, ended_ = nullptr, ended_before_ = nullptr;
  bool working_ = false, capturing_ = false, has_worked_ = false;
  std::optional<double> worked_ms_, idle_ms_;
  std::unique_ptr<cuda::Uploads> uploads_;
  std::unique_ptr<cuda::Reads> reads_;
};

}  // namespace stepladder
