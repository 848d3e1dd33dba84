// The CPU backend: operators run at once, on a pool of threads, through one table of kernels.
#pragma once

#include <memory>
#include <string>

#include "backends/backend.h"
#include "backends/cpu/kernels.h"
#include "core/thread_pool.h"

namespace stepladder {

class CpuBackend : public Backend {
 public:
  /// isa "": the best the machine has. Throws Error(unsupported) naming what there is.
  CpuBackend(const std::string& isa, int threads);
  ~CpuBackend() override;

  std::string name() const override;  // "cpu/<isa>"
  int threads() const { return pool_.threads(); }

  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;
  void upload(void* to, const void* host_from, size_t bytes) override;
  void read(void* host_to, const void* from, size_t bytes) override;
  void wait() override;
  bool runs_at_once() const override { return true; }
  std::unique_ptr<Recording> record(const std::function<void()>& body) override;
  size_t kv_bytes(const KVSpec&) const override;
  void read_entries(uint16_t* host_to, const KVView&, int slot, int first, int count) override;

  void expand(const ExpandArgs&) override;
  void embed(const EmbedArgs&) override;
  void rms_norm(const RmsNormArgs&) override;
  void quantize(const QuantizeArgs&) override;
  void linear(const LinearArgs&) override;
  void rope_append(const RopeAppendArgs&) override;
  void attention(const AttentionArgs&) override;
  void gated_act(const GatedActArgs&) override;
  void choose(const ChooseArgs&) override;
  void logprobs(const LogprobArgs&) override;
  void accept(const AcceptArgs&) override;
  void keep(const KeepArgs&) override;
  void count(const CountArgs&) override;

 private:
  const CpuKernels& kernels_;
  ThreadPool pool_;
  alignas(64) int32_t next_piece_ = 0;  // of the linear operator that runs
};

}  // namespace stepladder
