// The CPU backend: operators run at once, on a pool of threads, through one table of kernels.
#pragma once

#include <memory>
#include <string>

#include "backends/backend.h"
#include "backends/cpu/kernels.h"
#include "core/thread_pool.h"

namespace stepladder {

class CpuBackend : public Backend, public ProjectSteps {
 public:
  /// isa "": the best the machine has. Throws Error(unsupported) naming what there is.
  CpuBackend(const std::string& isa, int threads);
  ~CpuBackend() override;

  std::string name() const override;  // "cpu/<isa>"
  int threads() const { return pool_.threads(); }

  size_t available_bytes() const override;
  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;
  bool on_host() const override { return true; }
  void upload(void* to, const void* host_from, size_t bytes) override;
  void read(void* host_to, const void* from, size_t bytes) override;
  void wait() override;
  bool runs_at_once() const override { return true; }
  std::unique_ptr<Recording> record(const std::function<void()>& body) override;
  std::vector<int> row_buckets() const override { return {1, 2, 4, 8, 16, 32, 64, 128}; }
  size_t kv_bytes(const KVSpec&) const override;
  void read_entries(uint16_t* host_to, const KVView&, int slot, int first, int count) override;
  void read_features(uint16_t* host_to, const KVView&, int slot, int first, int count) override;

  size_t workspace_bytes(const ProjectArgs&) const override;
  size_t workspace_bytes(const AttentionArgs&) const override { return 0; }
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

  // What project() is composed of, in this order.
  void rms_norm(const RmsNormArgs&) override;
  void quantize(const QuantizeArgs&) override;
  void linear(const LinearArgs&) override;
  void rope_append(const RopeAppendArgs&) override;
  void gated_act(const GatedActArgs&) override;

 private:
  const CpuKernels& kernels_;
  ThreadPool pool_;
  alignas(64) int32_t next_piece_ = 0;  // of the linear operator that runs
};

}  // namespace stepladder
